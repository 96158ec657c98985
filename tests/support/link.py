"""A connection to a supervisor, over its own socket."""

from __future__ import annotations

import contextlib
import gzip
import os
import select
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from jobworker.errors import AgentUnavailable, JobWorkerError
from jobworker.jobs import MAX_STDIN_BYTES, JobRecord, JobSpec
from jobworker.limits import Limits
from jobworker.wire import frames, messages, sockets
from jobworker.wire.callers import Caller
from support.callers import caller
from support.waiting import until

# Who the tests are, by the word of the gateway that they stand in for.
CALLER = caller()
DEADLINE = 60


class Link:
    """A connection to a supervisor, as the gateway has one, but blocking."""

    def __init__(self, path: str, *, subscribe: bool = False) -> None:
        self.sock = sockets.connect(path)
        self._seq = 0
        self.events: deque[Any] = deque()
        self._ended: dict[str, JobRecord] = {}
        try:
            self.welcome = self.ask(messages.Hello(messages.PROTOCOL, subscribe))
        except (JobWorkerError, OSError):
            self.sock.close()
            raise

    def send(self, message: Any) -> int:
        """Send a request without waiting for its answer, which will have this number."""
        while (seq := self.offer(message)) is None:
            _, ready, _ = select.select([], [self.sock], [], DEADLINE)
            assert ready, "the supervisor does not read"
        return seq

    def offer(self, message: Any) -> int | None:
        """Send a request if there is room for it at once."""
        try:
            sockets.send(self.sock, frames.encode(message, self._seq + 1))
        except BlockingIOError:
            return None
        self._seq += 1
        return self._seq

    def receive(self) -> frames.Frame:
        """The next frame.

        Raises:
            ConnectionResetError: the supervisor is gone.
        """
        ready, _, _ = select.select([self.sock], [], [], DEADLINE)
        assert ready, "the supervisor says nothing"
        frame = frames.receive(self.sock, (*messages.ANSWERS, *messages.EVENTS))
        if frame is None:
            raise ConnectionResetError
        return frame

    def drain(self) -> None:
        """Take in events until the supervisor is gone."""
        with contextlib.suppress(ConnectionResetError):
            while True:
                self.events.append(self.receive().message)

    def answer(self, seq: int) -> frames.Frame:
        while True:
            frame = self.receive()
            if frame.seq == seq:
                if isinstance(frame.message, messages.Failed):
                    raise frames.to_error(frame.message)
                return frame
            self.events.append(frame.message)

    def ask(self, message: Any) -> Any:
        return self.answer(self.send(message)).message

    def start(self, command: str, *args: str, limits: Limits | None = None, **spec: Any) -> JobRecord:
        limits = limits or Limits()
        request = messages.StartJob(CALLER, JobSpec(command, args, limits=limits, **spec))
        record: JobRecord = self.ask(request).record
        return record

    def inspect(self, job_id: str) -> JobRecord:
        record: JobRecord = self.ask(messages.InspectJob(job_id)).record
        return record

    def stop(
        self,
        job_id: str,
        *,
        who: Caller = CALLER,
        grace_ms: int = 10_000,
        force: bool = False,
        wait: bool = True,
    ) -> JobRecord:
        """Stop a job; with `wait` until it has ended, or is found to be stuck."""
        request = messages.StopJob(who, job_id, signal.SIGTERM, grace_ms, force)
        record: JobRecord = self.ask(request).record
        if wait:
            until(lambda: self._is_over(job_id), wanted=True, seconds=DEADLINE)
            record = self.inspect(job_id)
        return record

    def _is_over(self, job_id: str) -> bool:
        record = self.inspect(job_id)
        return bool(record.ended_ns) or record.stuck

    def write_stdin(
        self, job_id: str, data: bytes = b"", *, offset: int | None = None, end: bool = False
    ) -> messages.StdinTaken:
        """What a supervisor answers at once: it may not have taken all of it."""
        taken: messages.StdinTaken = self.ask(messages.WriteStdin(CALLER, job_id, offset, data, end))
        return taken

    def feed(self, job_id: str, data: bytes, *, offset: int = 0, end: bool = False) -> None:
        """Write all of it, from the offset of its first byte on, as fast as the job reads."""
        at = offset
        while True:
            piece = data[at - offset :][:MAX_STDIN_BYTES]
            last = at - offset + len(piece) == len(data)
            answer = self.write_stdin(job_id, piece, offset=at, end=end and last)
            at = answer.taken
            if not answer.whole:
                self._wait_room(job_id)
            elif last:
                return

    def _wait_room(self, job_id: str) -> None:
        room = messages.StdinRoom(job_id)
        while room not in self.events:
            self.events.append(self.receive().message)
        self.events.remove(room)

    def wait_ended(self, job_id: str) -> JobRecord:
        """Wait for the event that the job has ended; needs `subscribe`."""
        while job_id not in self._ended:
            event = self.wait_event(lambda event: isinstance(event, messages.JobChanged) and event.record.ended_ns)
            self._ended[event.record.job_id] = event.record
        return self._ended[job_id]

    def wait_event(self, suits: Callable[[Any], object]) -> Any:
        """Wait for the next event that suits; those before it are forgotten. Needs `subscribe`."""
        while not suits(event := self.events.popleft() if self.events else self.receive().message):
            pass
        return event

    def wait_output(self, job_id: str) -> None:
        """Wait until the job has written something."""
        if self.ask(messages.FollowLog(job_id)).record.log_bytes:
            return
        while True:
            event = self.receive().message
            if isinstance(event, messages.LogGrew) and event.job_id == job_id and event.log_bytes:
                return
            self.events.append(event)

    def read_log(self, record: JobRecord) -> bytes:
        """All output of an ended job, through the descriptors that the supervisor hands over."""
        data = b""
        while len(data) < record.log_bytes:
            request = messages.OpenLog(record.job_id, len(data) // record.segment_bytes)
            answer = self.answer(self.send(request))
            with answer.fds as fds:
                log, index = fds.take()
            os.close(index)
            with open(log, "rb") as file:
                data += gzip.decompress(file.read()) if answer.message.length else file.read()
        return data

    def takes_jobs(self) -> bool:
        """Whether a job would be taken now."""
        try:
            self.ask(messages.StartJob(CALLER, JobSpec("/bin/true"), dry_run=True))
        except AgentUnavailable:
            return False
        return True

    def close(self) -> None:
        self.sock.close()

"""A job's standard input written from a thread that may have to wait for what there is to write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.upload import Upload, Written

Requests = Iterator[pb.WriteStdinRequest]


class Open(Protocol):
    """Makes a call of requests, and gives `opened` what ends it; what it raises as UNAVAILABLE is a break."""

    def __call__(
        self, requests: Requests, /, *, opened: Callable[[Callable[[], object]], None]
    ) -> Iterator[pb.WriteStdinResponse]: ...


class Writer:
    """Carries an upload out over one call after the other.

    A thread of its own makes the calls and takes in the answers, so that what was added is under way, over breaks
    too, while whoever adds waits for more.
    """

    def __init__(self, open_call: Open, upload: Upload) -> None:
        self._open = open_call
        self._upload = upload
        self._changed = threading.Condition()
        self._requests: SimpleQueue[pb.WriteStdinRequest | None] | None = None
        self._failure: Exception | None = None
        self._cancel: Callable[[], object] = _nothing
        self._over = threading.Event()
        self._given_up = False

    def write(self, pieces: Iterable[bytes], *, end: bool) -> Written:
        """Write all of it; comes back when it has been taken.

        Raises:
            JobWorkerError: it has not been, or not all of it.
        """
        # The calls are made there, and are to be of the span that is current here.
        threading.Thread(target=partial(copy_context().run, self._carry_out), daemon=True).start()
        try:
            for data in pieces:
                self._add(partial(self._upload.add, data), lambda: not self._upload.is_full)
            self._add(self._upload.end if end else _nothing, lambda: self._upload.nothing_is_due)
        except BaseException:
            # Half-closed alone, it would be open for as long as the job does not read.
            with self._changed:
                self._given_up = True
                self._cancel()
            raise
        finally:
            with self._changed:
                self._over.set()
                self._hang_up()
                self._changed.notify_all()
        return self._upload.written

    def _add(self, add: Callable[[], None], reached: Callable[[], bool]) -> None:
        """Add something, and wait for a state of the upload."""
        with self._changed:
            add()
            self._send()
            self._changed.wait_for(lambda: self._failure is not None or reached())
            if self._failure is not None:
                raise self._failure

    def _carry_out(self) -> None:
        try:
            while not self._over.wait(self._call()):
                # To whoever waits, another call would look as if something were due again.
                if self._upload.is_complete:
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits
            with self._changed:
                self._failure = error
                self._hang_up()
                self._changed.notify_all()

    def _call(self) -> float:
        """Make a call; how long to wait before the next one, in seconds.

        Raises:
            JobWorkerError: another one cannot mend it.
        """
        requests: SimpleQueue[pb.WriteStdinRequest | None] = SimpleQueue()
        failure: CallFailed | None = None
        with self._changed:
            if self._over.is_set():
                # Nobody would hang this one up.
                return 0
            requests.put(self._upload.open())
            self._requests = requests
        try:
            for response in self._open(iter(requests.get, None), opened=self._opened):
                self._take(response)
        except CallFailed as error:
            failure = error
        with self._changed:
            self._hang_up()
            pause = self._upload.pause(failure)
            # Some things are known to have been taken now, though nobody has answered that.
            self._changed.notify_all()
        return pause

    def _opened(self, cancel: Callable[[], object]) -> None:
        with self._changed:
            self._cancel = cancel
            if self._given_up:
                cancel()

    def _take(self, response: pb.WriteStdinResponse) -> None:
        with self._changed:
            self._upload.answer(response)
            self._send()
            self._changed.notify_all()

    def _send(self) -> None:
        if self._requests:
            for message in self._upload.due():
                self._requests.put(message)

    def _hang_up(self) -> None:
        # Or grpc's own thread would wait for what comes next.
        if self._requests:
            self._requests.put(None)
            self._requests = None


def _nothing() -> None:
    """There is no end to be added."""

"""A job's standard input written from a thread that may have to wait for what there is to write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.upload import Upload, Written
from jobworker.errors import JobWorkerError

Requests = Iterator[pb.WriteStdinRequest]
Open = Callable[[Requests], Iterator[pb.WriteStdinResponse]]


class Writer:
    """Carries an upload out over one call after the other.

    A thread of each call's own takes in the answers, so that what was added is under way while whoever adds waits
    for more.

    Args:
        open_call: makes a call of these requests; what it raises as UNAVAILABLE is a break.
    """

    def __init__(self, open_call: Open, upload: Upload) -> None:
        self._open = open_call
        self._upload = upload
        self._changed = threading.Condition()
        self._requests: SimpleQueue[pb.WriteStdinRequest | None] | None = None
        self._failure: JobWorkerError | None = None

    def write(self, pieces: Iterable[bytes], *, end: bool) -> Written:
        """Write all of it; comes back when it has been taken.

        Raises:
            JobWorkerError: it has not been, or not all of it.
        """
        try:
            self._until(lambda: self._upload.is_open)
            for data in pieces:
                self._add(data)
                self._until(lambda: not self._upload.is_full)
            with self._changed:
                if end:
                    self._upload.end()
            self._until(lambda: self._upload.nothing_is_due)
        finally:
            with self._changed:
                self._hang_up()
        return self._upload.written

    def _add(self, data: bytes) -> None:
        with self._changed:
            self._upload.add(data)

    def _until(self, reached: Callable[[], bool]) -> None:
        """Keep a call under way, and wait for a state of the upload."""
        while True:
            with self._changed:
                if self._requests is None and self._failure is None and not self._upload.nothing_is_due:
                    self._call()
                self._send()
                self._changed.wait_for(lambda: self._requests is None or reached())
                if self._requests is not None or (self._failure is None and reached()):
                    return
                failure, self._failure = self._failure, None
                pause = self._pause(failure)
            time.sleep(pause)

    def _pause(self, failure: JobWorkerError | None) -> float:
        if failure is not None and not isinstance(failure, CallFailed):
            raise failure
        return self._upload.pause(failure)

    def _call(self) -> None:
        requests = self._requests = SimpleQueue()
        requests.put(self._upload.open())
        responses = self._open(iter(requests.get, None))
        # The call is made there, and is to be of the span that is current here.
        listen = partial(copy_context().run, self._listen, requests, responses)
        threading.Thread(target=listen, daemon=True).start()

    def _listen(
        self, requests: SimpleQueue[pb.WriteStdinRequest | None], responses: Iterator[pb.WriteStdinResponse]
    ) -> None:
        failure: JobWorkerError | None = None
        try:
            for response in responses:
                with self._changed:
                    if self._requests is not requests:
                        return
                    self._upload.answer(response)
                    self._send()
                    self._changed.notify()
        except JobWorkerError as error:
            failure = error
        with self._changed:
            if self._requests is requests:
                self._failure = failure
                self._hang_up()
                self._changed.notify()

    def _send(self) -> None:
        if self._requests:
            for message in self._upload.due():
                self._requests.put(message)

    def _hang_up(self) -> None:
        # Or grpc's own thread would wait for what comes next.
        if self._requests:
            self._requests.put(None)
            self._requests = None

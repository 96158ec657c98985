"""What Ctrl-C, and SIGTERM and SIGHUP, do to `worker-client run`."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Self

from jobworker.cli.client_command import complain
from jobworker.client.failures import CallFailed

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client


class Interrupts:
    """The first Ctrl-C stops the job or, with `detach`, leaves it running; the second one leaves at once.

    To leave is a KeyboardInterrupt. The stop runs in a thread, for the output is followed meanwhile, and the
    handler of a signal may interrupt anything: all it does is to put an order into a queue made for that.

    Attributes:
        count: how often Ctrl-C was pressed.
    """

    def __init__(self, client: Client, *, detach: bool) -> None:
        self.count = 0
        self._client = client
        self._detach = detach
        self._job_id = ""
        self._stopping = False
        self._orders: SimpleQueue[str] = SimpleQueue()
        self._before = {number: signal.getsignal(number) for number in heeded()}

    def __enter__(self) -> Self:
        for number in self._before:
            signal.signal(number, self._handle)
        threading.Thread(target=self._stop_on_order, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._orders.put("")

    def started(self, job_id: str) -> None:
        """From now on there is a job to stop; Ctrl-C may have been pressed already."""
        self._job_id = job_id
        if self.count:
            self._orders.put(job_id)

    def left(self) -> None:
        """Something else ends this command: tell of the job, if there is one."""
        if self._job_id:
            complain(self.farewell())

    def farewell(self) -> str:
        """What becomes of the job, for one who leaves early."""
        if not self._job_id:
            return "interrupted while the job was being started; `worker-client list` shows whether it runs"
        state = "goes on" if self._detach else "is being stopped" if self._stopping else "may go on"
        return f"job {self._job_id} {state}; `worker-client query {self._job_id}` tells how it is"

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._detach or self.count > 1:
            raise KeyboardInterrupt
        if self._job_id:
            self._orders.put(self._job_id)

    def _stop_on_order(self) -> None:
        job_id = self._orders.get()
        if not job_id:
            return
        complain(f"stopping job {job_id}; Ctrl-C again leaves without waiting for it")
        try:
            stop_unless_ended(self._client, job_id)
            self._stopping = True
        except CallFailed as error:
            # By a second Ctrl-C this command may have ended meanwhile.
            if error.code != "CANCELLED":
                complain(f"job {job_id} could not be stopped: {error}")


def heeded() -> set[signal.Signals]:
    """The signals that shall end this. Who starts it in the background has some ignored, and means it."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {number for number in ending if signal.getsignal(number) is not signal.SIG_IGN}


def stop_unless_ended(client: Client, job_id: str) -> None:
    """Have a job stopped; it may well end by itself before.

    Raises:
        CallFailed: it could not be stopped.
    """
    try:
        client.stop(job_id, wait=False)
    except CallFailed as error:
        if error.reason != "JOB_ALREADY_ENDED":
            raise

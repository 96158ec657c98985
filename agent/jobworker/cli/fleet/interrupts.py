"""What Ctrl-C, and SIGTERM and SIGHUP, do to a command on many hosts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from jobworker.cli.client_command import complain
from jobworker.cli.client_interrupt import heeded, stop_unless_ended
from jobworker.client.failures import CallFailed

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job
    from jobworker.client.rpc.client import Client
    from jobworker.jobs import JobSpec


class FleetInterrupts:
    """The first Ctrl-C begins no other host, and stops the jobs that are followed; the second one leaves at once.

    With `detach` the first one leaves at once. A thread takes the signal, which is blocked in all others: one of
    those that grpc has may be given it, and then nothing wakes the one that waits.

    Attributes:
        count: how often Ctrl-C was pressed.
    """

    def __init__(self, close: Callable[[], None], leave: Callable[[], None], *, detach: bool, runs: bool) -> None:
        """Prepare. To be entered before there are other threads, which inherit what is blocked.

        Args:
            close: has no other host begun.
            leave: has nothing waited for any more.
            detach: let jobs go on.
            runs: there are jobs that are followed.
        """
        self.count = 0
        self._close, self._leave = close, leave
        self._detach = detach
        self._also = ", and jobs are stopped" if runs else ""
        self._lock = threading.Condition()
        self._followed: dict[str, tuple[Client, str]] = {}
        self._starting = 0
        self._stopping = self._full = False
        self._signals = heeded()

    def __enter__(self) -> Self:
        if self._signals:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
            threading.Thread(target=self._obey, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def start(self, host: str, client: Client, spec: JobSpec, idempotency_key: str) -> Job | None:
        """Start a job, which there is to stop on this host from then on; None if no other is to be started."""
        with self._lock:
            if self._stopping or self._full:
                return None
            self._starting += 1
        try:
            job = client.start(spec, idempotency_key=idempotency_key)
            if self._follow(host, client, job.id):
                _stop(host, client, job.id)
            return job
        finally:
            with self._lock:
                self._starting -= 1
                self._lock.notify_all()

    def _follow(self, host: str, client: Client, job_id: str) -> bool:
        """True if the job is to be stopped at once."""
        with self._lock:
            self._followed[host] = (client, job_id)
            return self._stopping

    def ended(self, host: str) -> None:
        """There is none any more."""
        with self._lock:
            self._followed.pop(host, None)

    def stop_all(self) -> None:
        """Begin no other host, start no other job, and have all stopped that are followed or being started.

        Returns when the agents have answered.
        """
        self._close()
        with self._lock:
            self._stopping = True
            followed = dict(self._followed)
        threads = [
            threading.Thread(target=_stop, args=(host, *job), daemon=True) for host, job in followed.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.start_no_more()

    def start_no_more(self) -> None:
        """Begin no other host, and start no other job.

        Returns when those are followed that are being started.
        """
        self._close()
        with self._lock:
            self._full = True
            self._lock.wait_for(lambda: not self._starting)

    def followed(self) -> dict[str, str]:
        """The ids of the jobs that are followed, by host."""
        with self._lock:
            return {host: job_id for host, (_, job_id) in self._followed.items()}

    def _obey(self) -> None:
        signal.sigwait(self._signals)
        self.count += 1
        if not self._detach:
            complain(f"no other host is begun{self._also}; Ctrl-C again leaves without waiting")
            # Apart, since an agent may take its time to answer.
            threading.Thread(target=self.stop_all, daemon=True).start()
            signal.sigwait(self._signals)
            self.count += 1
        self._leave()


def _stop(host: str, client: Client, job_id: str) -> None:
    try:
        stop_unless_ended(client, job_id)
    except CallFailed as error:
        # Its visit may have ended meanwhile, or this command.
        if error.code != "CANCELLED":
            complain(f"{host}: job {job_id} could not be stopped: {error}")

"""What the output of all jobs together may take of the disk (`jobs.keep_logs`), and who gives way to whom.

Ended jobs and running ones share it, and neither is driven out of its half by the other. Ended jobs go as a whole,
the oldest first, while a sixteenth is still free, since it takes a moment to remove them. Running ones lose closed
segments at once, the oldest of the job that has most: so a flood loses its own. What a running job has yet to
write into its open segment counts as written, so that there is room for it whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobworker.supervisor.output import OutputLog


@dataclass(slots=True)
class _Running:
    """A running job's log, the bytes that count for it, and the number of its open segment."""

    output: OutputLog
    bytes: int = 0
    open_segment: int = 0


class Space:
    """Keeps the books.

    Args:
        total: bytes; 0 for no bound.
        reserved: how many of these are kept free for compressing segments.

    Attributes:
        ended: the bytes of ended jobs.
        leaving: the bytes of jobs that are being removed.
    """

    def __init__(self, total: int, reserved: int) -> None:
        self._total = total
        self._crowded: Callable[[], None] = lambda: None
        self._running: dict[str, _Running] = {}
        self._running_bytes = reserved
        self.ended = 0
        self.leaving = 0

    def on_crowded(self, callback: Callable[[], None]) -> None:
        """Call back, again and again, while ended jobs have more than is theirs."""
        self._crowded = callback

    @property
    def is_crowded(self) -> bool:
        """Ended jobs have more than is theirs."""
        soon_full = self._total - self._total // 16
        return bool(self._total) and self.ended > max(self._total // 2, soon_full - self._running_bytes)

    def grew(self, job_id: str, output: OutputLog) -> bool:
        """A running job has more output, or is new; True if it has closed a segment since the last time."""
        job = self._running.get(job_id)
        if job is None:
            job = self._running[job_id] = _Running(output)
        self._count(job)
        rotated, job.open_segment = output.open_segment != job.open_segment, output.open_segment
        self._make_room()
        return rotated

    def shrank(self, job_id: str) -> None:
        """A running job has less."""
        self._count(self._running[job_id])

    def ends(self, job_id: str) -> None:
        """A job does not run any more; what it has is the ended jobs' now."""
        if job := self._running.pop(job_id, None):
            self._running_bytes -= job.bytes

    def _count(self, job: _Running) -> None:
        self._running_bytes += job.output.stored - job.bytes
        job.bytes = job.output.stored

    def _make_room(self) -> None:
        if not self._total:
            return
        if self.is_crowded:
            self._crowded()
        while self._running_bytes + self.ended + self.leaving > self._total:
            having = [job for job in self._running.values() if job.output.closed_segments]
            if not having:
                return
            most = max(having, key=lambda job: job.bytes)
            # If none of its can be removed it has none any more, and it is another one's turn.
            most.output.drop_oldest()
            self._count(most)

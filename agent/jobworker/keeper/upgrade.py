"""The keeper's way to another program: what is on disk now is tried in a process of its own, then executed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from jobworker.wire import handover

# For new code to prove itself, in seconds: as long as the supervisor's has.
PATIENCE = 100.0


class Upgrade:
    """One upgrade after the other, each from when it is asked for until it is executed or given up.

    What raises OSError says nothing of the code there: it is due again.

    Args:
        own: the command line that started this program.

    Attributes:
        is_due: it was asked for, and the code that is there has not been tried since.
        is_proven: that has been tried, and found to be good.
        late_at: when the trial under way has taken too long, by the monotonic clock; None for no trial.
    """

    def __init__(self, own: Sequence[str]) -> None:
        self._own = own
        self.is_due = False
        self.is_proven = False
        self.late_at: float | None = None
        self._trial = 0

    def begin_trial(self) -> None:
        """Have the code tried.

        Raises:
            OSError: it could not be.
        """
        self.is_proven = False
        self._trial = handover.prove(self._own)
        self.is_due, self.late_at = False, time.monotonic() + PATIENCE

    def is_trial(self, pid: int) -> bool:
        """Whether it is that process which tries the code."""
        return pid == self._trial

    def trial_ended(self, code: int, status: int) -> None:
        """As waitid(2) tells it: `si_code` and `si_status`."""
        self._trial, self.late_at = 0, None
        self.is_proven = (code, status) == (os.CLD_EXITED, 0)

    def kill_trial(self) -> None:
        """What is in the hands of a file system that does not answer ends when that lets go of it."""
        if self._trial:
            os.kill(self._trial, signal.SIGKILL)
        self._trial, self.late_at = 0, None

    def execute(self, state: handover.State) -> None:
        """Execute the program in this process.

        Raises:
            OSError: it could not be.
        """
        self.is_due, self.is_proven = True, False
        handover.execute(self._own, state)

"""User ids for jobs: one each, not used again while a job of that user has files here."""

from __future__ import annotations

import os

from jobworker.errors import CapExceeded
from jobworker.settings.schema import JobSettings

_RETRY_SECONDS = 60


class Users:
    """The range in the settings, where the agent is root; else all jobs are the agent's own user's."""

    def __init__(self, settings: JobSettings) -> None:
        self.one_per_job = os.geteuid() == 0
        self._count = settings.uid_count
        self._first = settings.first_uid
        self._turn = 0
        self._used: set[int] = set()

    def find(self) -> int | None:
        """A user id that is not in use, for `take`; None where jobs have none of their own.

        Raises:
            CapExceeded: there is none left.
        """
        if not self.one_per_job:
            return None
        for turn in range(self._turn, self._turn + self._count):
            if (uid := self._first + turn % self._count) not in self._used:
                return uid
        raise CapExceeded("the number of jobs that have a user id (jobs.uid_count)", self._count, _RETRY_SECONDS)

    def take(self, uid: int | None) -> None:
        """Use the one that was found."""
        if uid is not None:
            self._used.add(uid)
            self._turn = (uid - self._first + 1) % self._count

    def keep(self, uid: int) -> None:
        """It is in use, by a job of an earlier life; or is a user of the host, which no job is given."""
        self._used.add(uid)

    def give_back(self, uid: int | None) -> None:
        if uid is not None:
            self._used.discard(uid)

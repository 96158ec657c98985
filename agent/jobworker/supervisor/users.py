"""User ids for jobs: one each, not used again while a job of that user has files here."""

from __future__ import annotations

import itertools
import os

from jobworker.errors import CapExceeded
from jobworker.settings.schema import JobSettings

_RETRY_SECONDS = 60


class Users:
    """The range in the settings, where the agent is root; else all jobs are the agent's own user's."""

    def __init__(self, settings: JobSettings) -> None:
        self.one_per_job = os.geteuid() == 0
        self._count = settings.uid_count
        self._ids = itertools.cycle(range(settings.first_uid, settings.first_uid + settings.uid_count))
        self._used: set[int] = set()

    def take(self) -> int | None:
        """A user id that is not in use; None where jobs have none of their own.

        Raises:
            CapExceeded: there is none left.
        """
        if not self.one_per_job:
            return None
        for uid in itertools.islice(self._ids, self._count):
            if uid not in self._used:
                self._used.add(uid)
                return uid
        raise CapExceeded("the number of jobs that have a user id", self._count, _RETRY_SECONDS)

    def keep(self, uid: int) -> None:
        """It is in use, by a job of an earlier life; or is a user of the host, which no job is given."""
        self._used.add(uid)

    def give_back(self, uid: int | None) -> None:
        if uid is not None:
            self._used.discard(uid)

"""The profiles of limits in force, and the caps."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.errors import AgentUnavailable
from jobworker.file_stamp import Stamp
from jobworker.limits import MAX_LIMITS_BYTES, NO_PROFILES, LimitProfiles
from jobworker.settings.schema import Settings
from jobworker.supervisor.last_good import LastGood
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.reading import Source
from jobworker.supervisor.store import Store


@dataclass(frozen=True, slots=True)
class StoredLimits:
    """What the limits file held when it was good last.

    Attributes:
        path: of the file.
        stamp: how that looked from outside.
    """

    path: str
    stamp: Stamp
    limits: LimitProfiles


def _ready(profiles: LimitProfiles) -> LimitProfiles:
    profiles.check()
    return profiles


SOURCE = Source("limits", "what jobs may use", LimitProfiles, MAX_LIMITS_BYTES, _ready, StoredLimits)
# Another object than `NO_PROFILES`, and told by that.
_UNKNOWN = LimitProfiles()


class Profiles(LastGood[LimitProfiles, LimitProfiles]):
    """Owns the profiles."""

    def __init__(self, loop: Loop, log: Log, store: Store, settings: Settings, *, patient: bool) -> None:
        super().__init__(
            loop, log, store, SOURCE, settings.limits, unset=NO_PROFILES, unknown=_UNKNOWN, patient=patient
        )

    def check_known(self) -> None:
        """Check that there is something that jobs can be held to.

        Raises:
            AgentUnavailable: the file cannot be used, and no earlier one is kept.
        """
        if self.value is _UNKNOWN:
            raise AgentUnavailable("its limits file was never good, and without the caps in it no job is started")

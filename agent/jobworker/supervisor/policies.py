"""The policy in force."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker import policy
from jobworker.file_stamp import Stamp
from jobworker.policy import MAX_POLICY_BYTES, NOTHING, Policy
from jobworker.rulebook import Rulebook
from jobworker.settings.schema import Settings
from jobworker.supervisor.last_good import LastGood
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.reading import Source
from jobworker.supervisor.store import Store


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """The last good policy.

    Attributes:
        path: of its file.
        stamp: how that looked from outside.
    """

    path: str
    stamp: Stamp
    policy: Policy


SOURCE = Source("policy", "who may do what", Policy, MAX_POLICY_BYTES, Rulebook, StoredPolicy)


class Policies(LastGood[Policy, Rulebook]):
    """Owns the policy."""

    def __init__(self, loop: Loop, log: Log, store: Store, settings: Settings, *, patient: bool) -> None:
        isolation = settings.isolation
        default = policy.default(isolation.host_for, isolation.default)
        super().__init__(
            loop, log, store, SOURCE, settings.policy, unset=default, unknown=NOTHING, patient=patient
        )

"""What the supervisor tells of its host."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.limits import NO_PROFILES, Enforcement, LimitProfiles
from jobworker.sandbox import Part


@dataclass(frozen=True, slots=True)
class LimitSupport:
    """One kind of limit, and what this host and its settings make of it."""

    name: str
    enforcement: Enforcement
    detail: str
    default: str
    maximum: str


@dataclass(frozen=True, slots=True)
class PartSupport:
    """One part of the sandbox profiles.

    Attributes:
        reason: why this host cannot apply it; empty if it can.
    """

    part: Part
    reason: str


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What the supervisor knows of its host.

    Attributes:
        cgroup_mode: `v2`, `v1`, `hybrid` or `none`.
        memory_bytes: of the host.
        user_per_job: jobs run under a user id of their own each.
        sandbox: the profile of a job that asks for none.
        draining: no new job is taken.
        profiles: of limits, that are in force.
        limits_problem: why the limits file as it is now is not in force; empty if it is.
    """

    cgroup_mode: str
    limits: tuple[LimitSupport, ...]
    cpus: int
    memory_bytes: int
    max_active_jobs: int
    user_per_job: bool
    sandbox: str
    isolation: tuple[PartSupport, ...]
    draining: bool = False
    profiles: LimitProfiles = NO_PROFILES
    limits_problem: str = ""

"""What becomes of the limits that a job asks for, on this host and under its settings.

The one place that says which limit a job gets. Each by itself comes from the first of these that has one:

1. the request
2. the profile that the request names
3. the maximum of the policy's rule that allows the start
4. the default profile, where the request names none
5. `jobs.default_pids` and `jobs.default_memory`
6. the caps of the limits file

The first two are what was asked for: more than the rule allows, or than the least of the host, `jobs.max_*` and
the caps, is refused, and so is what can't be enforced here. The others are cut down to what there is, and one that
can't be enforced is done without, and said. Swap comes from where the memory comes from. Then
`jobs.max_jobs_memory` has to have room for all of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jobworker import units
from jobworker.errors import InvalidField, LimitUnsupported
from jobworker.jobs import JobSpec
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.disk import Disk, NoDisk
from jobworker.limits import (
    BY_NAME,
    IO,
    IO_WRITES,
    KINDS,
    NO_LIMITS,
    USUAL_WEIGHT,
    Enforcement,
    Kind,
    LimitProfiles,
    Limits,
    LimitStatus,
)
from jobworker.settings.schema import JobSettings
from jobworker.wire.host import LimitSupport

# What is said of a limit that was written, and reads otherwise.
ANOTHER_VALUE = "the kernel makes another value of it"
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job is to be held to.

    Attributes:
        asked: by the client, with the defaults filled in.
        settable: those of them that can be set here; sizes are whole pages, as the kernel keeps them.
        disk: that the IO limits are for.
        refused: why others can't be set, by name: defaults, and what was asked for where best effort will do.
    """

    asked: Limits
    settable: Limits
    disk: Disk | None
    refused: dict[str, str]


class LimitRules:
    """Profiles, defaults, maxima, and what the hierarchy can't enforce.

    Args:
        profiles: what the limits file holds now.
        disk_of: the disk that a directory is on, by its path, which is empty for a job's own.
    """

    def __init__(
        self,
        settings: JobSettings,
        hierarchy: Hierarchy,
        profiles: Callable[[], LimitProfiles],
        disk_of: Callable[[str], Disk],
    ) -> None:
        self._profiles = profiles
        self._disk_of = disk_of
        self._defaults = Limits(pids=settings.default_pids, memory_bytes=settings.default_memory_bytes or None)
        self._support = {each.limit: each for each in hierarchy.support}
        self._hierarchy = hierarchy
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._maxima = {
            "cpu": settings.max_cpu_millis or (os.cpu_count() or 1) * 1000,
            "memory": settings.max_memory_bytes or host_memory(),
            "pids": settings.max_pids,
        }

    def profiled(self, spec: JobSpec) -> JobSpec:
        """The specification with the limits of its profile in place of the profile's name.

        One whose profile there is not is left as it is.
        """
        known = {profile.name: profile.limits for profile in self._profiles().profiles}
        if spec.profile not in known:
            return spec
        return replace(spec, limits=spec.limits.over(known[spec.profile]), profile="")

    def profile(self, name: str) -> str:
        """The profile of a job that asks for this one, or for none.

        Raises:
            InvalidField: there is no such profile.
        """
        profiles = self._profiles()
        profiles.of(name)
        return name or profiles.default

    def plan(
        self,
        spec: JobSpec,
        directory: str,
        profile: str,
        prescribed: tuple[str, ...] = (),
        filled: tuple[str, ...] = (),
    ) -> Plan:
        """What to set for a job.

        Args:
            spec: as its client wants it, checked, with the limits of its profile.
            directory: that it will work in; empty for its own.
            profile: that it has.
            prescribed: the names of limits that must be enforced, whatever the request allows.
            filled: the names of limits that nobody asked for: of these the host gives what it has.

        Raises:
            InvalidField: a limit is more than this host allows.
            LimitUnsupported: one can't be enforced here, and the request does not allow best effort.
            HostFault: the directory's file system does not answer.
            DiskAwaited: it has to be found out first which disk the directory is on.
        """
        wanted = self._within(spec.limits, filled)
        names = self._checked(wanted)
        asked = wanted.over(self._default(profile))
        found, refused = self._refused(asked, directory)
        for name, reason in refused.items():
            if name in prescribed or (name in names and not spec.best_effort):
                raise LimitUnsupported(name, reason)
        return _plan(asked, found, refused)

    def plan_change(self, asked: Limits, directory: str) -> Plan:
        """What to set for a job that runs; the others of its limits stay.

        Raises:
            InvalidField: a limit is more than this host allows.
            LimitUnsupported: one can't be enforced here.
            HostFault, DiskAwaited: see `plan`.
        """
        self._checked(asked)
        found, refused = self._refused(asked, directory)
        for name, reason in refused.items():
            raise LimitUnsupported(name, reason)
        return _plan(asked, found, refused)

    def _default(self, profile: str) -> Limits:
        """What a job with this profile gets without asking."""
        profiles = self._profiles()
        of_profile = profiles.of(profile) if profile == profiles.default else NO_LIMITS
        caps = profiles.caps
        if caps.cpu_weight is not None and caps.cpu_weight >= USUAL_WEIGHT:
            # What a job has that asks for none is within it.
            caps = replace(caps, cpu_weight=None)
        default = of_profile.over(self._defaults).over(caps)
        default = self._within(default, tuple(name for name, _ in default.given()))
        if default.cpuset and BY_NAME["cpuset"].exceeds(default.cpuset, most := self._most("cpuset")):
            # They are another host's.
            default = replace(default, cpuset=most)
        return default

    def _refused(self, limits: Limits, directory: str) -> tuple[Disk | None, dict[str, str]]:
        """The disk that IO limits are for, if there are any, and why others can't be set, by name."""
        lacking = {name for name, _ in limits.given() if self.lacks(name)}
        refused = {name: self._support[name].detail for name, _ in limits.given() if name in lacking}
        if io := [name for name, _ in limits.given() if name in IO and name not in refused]:
            try:
                return self._disk_of(directory), refused
            except (NoDisk, OSError) as error:
                refused |= dict.fromkeys(io, str(error))
        return None, refused

    def lacks(self, name: str) -> bool:
        """True if there are no such limits here."""
        return self._support[name].enforcement is Enforcement.UNSUPPORTED

    def _within(self, limits: Limits, names: tuple[str, ...]) -> Limits:
        """The limits, those with these names cut down to what there is."""
        values: dict[str, Any] = {}
        for name in names:
            value, most = getattr(limits, BY_NAME[name].field), self._most(name)
            if isinstance(value, str):
                # None of them: it is refused as asked for.
                there = units.cpus_of(value, name) & units.cpus_of(most, name)
                values[BY_NAME[name].field] = units.format_cpu_list(there) if there else value
            elif most is not None:
                values[BY_NAME[name].field] = min(value, most)
        return replace(limits, **values) if values else limits

    def _checked(self, limits: Limits) -> frozenset[str]:
        """The names of limits that are no more than there may be.

        Raises:
            InvalidField: one is more.
        """
        for name, asked in limits.given():
            kind, most = BY_NAME[name], self._most(name)
            if most is not None and kind.exceeds(asked, most):
                raise InvalidField(f"limits.{name}", self._excess(name, asked), kind.show(most))
        return frozenset(name for name, _ in limits.given())

    def _excess(self, name: str, asked: int | str) -> str:
        if isinstance(asked, str):
            if absent := units.cpus_of(asked, name) - self._cpus_there():
                return f"{units.format_cpu_list(absent)} is not among this host's CPUs for jobs"
            return f"{asked} is not among the CPUs that jobs may have"
        cap = getattr(self._profiles().caps, BY_NAME[name].field)
        whose = "the caps of the agent's limits file allow" if self._most(name) == cap else "this host allows"
        return f"{BY_NAME[name].show(asked)} is more than {whose}"

    def _most(self, name: str) -> Any:
        """The most that a job may have of this; None for any."""
        kind = BY_NAME[name]
        host, cap = self._maxima.get(name), getattr(self._profiles().caps, kind.field)
        if kind.bounds is None:
            there = self._cpus_there()
            allowed = there & units.cpus_of(cap, name) if cap else there
            # Caps that are for other hosts leave all that there are.
            return units.format_cpu_list(allowed or there)
        return min((each for each in (host, cap) if each is not None), default=None)

    def _cpus_there(self) -> frozenset[int]:
        """The CPUs that jobs can be given: an administrator may give their cgroup others at any time."""
        # Where the kernel does not tell now, what it told last will do: it has the last word in any case.
        with contextlib.suppress(OSError):
            if told := self._hierarchy.cpus():
                self._cpus = units.cpus_of(told, "cpuset")
        return self._cpus

    def status(self, plan: Plan, actual: Limits) -> tuple[LimitStatus, ...]:
        """For the job's record: each limit as asked for and as the kernel has it."""
        return tuple(self._status(plan, name, value, actual) for name, value in plan.asked.given())

    def _status(self, plan: Plan, name: str, asked: int | str, actual: Limits) -> LimitStatus:
        kind = BY_NAME[name]
        value = getattr(actual, kind.field)
        if name in plan.refused or value is None:
            reason = plan.refused.get(name, "the kernel reports no limit")
            return LimitStatus(name, kind.show(asked), "", Enforcement.UNSUPPORTED, reason)
        support = self._support[name]
        where = f"on {plan.disk.name}" if plan.disk and name in IO else ""
        late = plan.disk.late_writes if plan.disk and name in IO_WRITES and not support.detail else ""
        # The kernel has the last word, and more than was asked for is not what is to be enforced.
        beyond = ANOTHER_VALUE if kind.exceeds(value, asked) else ""
        enforcement = Enforcement.BEST_EFFORT if late or beyond else support.enforcement
        detail = "; ".join(filter(None, (where, support.detail, late, beyond)))
        return LimitStatus(name, kind.show(asked), kind.show(value), enforcement, detail)

    def support(self) -> tuple[LimitSupport, ...]:
        """For those who ask what can be limited here."""
        defaults = dict(self._default(self._profiles().default).given())
        return tuple(
            LimitSupport(
                name=kind.name,
                enforcement=self._support[kind.name].enforcement,
                detail=self._support[kind.name].detail,
                default=kind.show(defaults[kind.name]) if kind.name in defaults else "",
                maximum=self._maximum(kind),
            )
            for kind in KINDS
        )

    def _maximum(self, kind: Kind) -> str:
        most = self._most(kind.name)
        return str(kind.show(kind.bounds[1] if most is None and kind.bounds else most))


def _plan(asked: Limits, found: Disk | None, refused: dict[str, str]) -> Plan:
    values: dict[str, Any] = {
        field: size // _PAGE * _PAGE
        for field, size in (("memory_bytes", asked.memory_bytes), ("swap_bytes", asked.swap_bytes))
        if size is not None
    }
    values |= {BY_NAME[name].field: None for name in refused}
    return Plan(asked, replace(asked, **values, io_device=found.number if found else None), found, refused)


def host_memory() -> int:
    """In bytes, down to a whole MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20 << 20

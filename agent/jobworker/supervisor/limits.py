"""What becomes of the limits that a job asks for, on this host and under its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobworker import units
from jobworker.errors import InvalidField, LimitUnsupported
from jobworker.jobs import JobSpec
from jobworker.kernel import disk
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.disk import Disk, NoDisk
from jobworker.limits import BY_NAME, IO, KINDS, Enforcement, Limits, LimitStatus
from jobworker.settings.schema import JobSettings
from jobworker.wire.messages import LimitSupport


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job is to be held to.

    Attributes:
        asked: by the client, with the defaults filled in.
        settable: those of them that can be set here.
        disk: that the IO limits are for.
        refused: why others can't be set, by name; only where the request allows best effort.
    """

    asked: Limits
    settable: Limits
    disk: Disk | None
    refused: dict[str, str]


class LimitRules:
    """Defaults, maxima, and what the hierarchy can't enforce."""

    def __init__(self, settings: JobSettings, hierarchy: Hierarchy) -> None:
        self._defaults: dict[str, Any] = {"pids": settings.default_pids, "memory": settings.default_memory_bytes}
        self._support = {each.limit: each for each in hierarchy.support}
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._maxima = {
            "cpu": settings.max_cpu_millis or (os.cpu_count() or 1) * 1000,
            "memory": settings.max_memory_bytes or host_memory(),
            "pids": settings.max_pids,
        }

    def plan(
        self, spec: JobSpec, directory: str, prescribed: tuple[str, ...] = (), filled: tuple[str, ...] = ()
    ) -> Plan:
        """What to set for a job.

        Args:
            spec: as its client wants it, checked.
            directory: that it will work in.
            prescribed: the names of limits that must be enforced, whatever the request allows.
            filled: the names of limits that nobody asked for: of these the host gives what it has.

        Raises:
            InvalidField: a limit is more than this host allows.
            LimitUnsupported: one can't be enforced here, and the request does not allow best effort.
        """
        spec = replace(spec, limits=self._within(spec.limits, filled))
        refused: dict[str, str] = {}
        for name, value in _given(spec.limits):
            self._check(name, value)
            if self._support[name].enforcement is Enforcement.UNSUPPORTED:
                refused[name] = self._support[name].detail
        found = None
        if io := [name for name, _ in _given(spec.limits) if name in IO and name not in refused]:
            try:
                found = disk.of_path(directory)
            except (NoDisk, OSError) as error:
                refused |= dict.fromkeys(io, str(error))
        for name, reason in refused.items():
            if name in prescribed or not spec.best_effort:
                raise LimitUnsupported(name, reason)
        asked = spec.limits
        for name, default in self._defaults.items():
            field = BY_NAME[name].field
            if default and getattr(asked, field) is None:
                asked = replace(asked, **{field: default})
                if self._support[name].enforcement is Enforcement.UNSUPPORTED:
                    refused[name] = self._support[name].detail
        settable = replace(asked, **{BY_NAME[name].field: None for name in refused})
        return Plan(asked, replace(settable, io_device=found.number if found else None), found, refused)

    def _within(self, limits: Limits, names: tuple[str, ...]) -> Limits:
        values: dict[str, Any] = {}
        for name in names:
            value = getattr(limits, BY_NAME[name].field)
            if isinstance(value, str):
                # None of them: it is refused as asked for.
                there = units.cpus_of(value, name) & self._cpus
                values[BY_NAME[name].field] = units.format_cpu_list(there) if there else value
            else:
                values[BY_NAME[name].field] = min(value, self._maxima.get(name, value))
        return replace(limits, **values) if values else limits

    def _check(self, name: str, asked: int | str) -> None:
        field = f"limits.{name}"
        if isinstance(asked, str):
            if absent := units.cpus_of(asked, field) - self._cpus:
                there = units.format_cpu_list(self._cpus)
                problem = f"{units.format_cpu_list(absent)} is not among the agent's CPUs"
                raise InvalidField(field, problem, there)
        elif (most := self._maxima.get(name)) is not None and asked > most:
            show = BY_NAME[name].show
            raise InvalidField(field, f"{show(asked)} is more than this host allows", show(most))

    def status(self, plan: Plan, actual: Limits) -> tuple[LimitStatus, ...]:
        """For the job's record: each limit as asked for and as the kernel has it."""
        return tuple(self._status(plan, name, value, actual) for name, value in _given(plan.asked))

    def _status(self, plan: Plan, name: str, asked: int | str, actual: Limits) -> LimitStatus:
        kind = BY_NAME[name]
        value = getattr(actual, kind.field)
        if name in plan.refused or value is None:
            reason = plan.refused.get(name, "the kernel reports no limit")
            return LimitStatus(name, kind.show(asked), "", Enforcement.UNSUPPORTED, reason)
        support = self._support[name]
        where = f"on {plan.disk.name}" if plan.disk and name in IO else ""
        detail = "; ".join(filter(None, (where, support.detail)))
        return LimitStatus(name, kind.show(asked), kind.show(value), support.enforcement, detail)

    def support(self) -> tuple[LimitSupport, ...]:
        """For those who ask what can be limited here."""
        defaults = {name: BY_NAME[name].show(value) for name, value in self._defaults.items() if value}
        return tuple(
            LimitSupport(
                name=kind.name,
                enforcement=self._support[kind.name].enforcement,
                detail=self._support[kind.name].detail,
                default=defaults.get(kind.name, ""),
                maximum=self._maximum(kind.name),
            )
            for kind in KINDS
        )

    def _maximum(self, name: str) -> str:
        kind = BY_NAME[name]
        if kind.bounds is None:
            return units.format_cpu_list(self._cpus)
        return kind.show(self._maxima.get(name, kind.bounds[1]))


def _given(limits: Limits) -> Iterator[tuple[str, int | str]]:
    for kind in KINDS:
        if (value := getattr(limits, kind.field)) is not None:
            yield kind.name, value


def host_memory() -> int:
    """In bytes, down to a whole MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20 << 20

"""What becomes of the limits that a job asks for, on this host and under its settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from jobworker.errors import InvalidField, LimitUnsupported
from jobworker.jobs import Enforcement, JobSpec, Limits, LimitStatus, format_cpu, format_size
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.settings.schema import JobSettings
from jobworker.wire.messages import LimitSupport

_FORMATS: dict[str, Callable[[int], str]] = {"cpu": format_cpu, "memory": format_size, "pids": str}
_FIELDS = {"cpu": "cpu_millis", "memory": "memory_bytes", "pids": "pids"}


class LimitRules:
    """Defaults, maxima, and what the hierarchy can't enforce."""

    def __init__(self, settings: JobSettings, hierarchy: Hierarchy) -> None:
        self._default_pids = settings.default_pids
        self._kinds = hierarchy.support
        self._unsupported = {kind.limit: kind.reason for kind in hierarchy.support if kind.reason}
        self._maxima = {
            "cpu": settings.max_cpu_millis or (os.cpu_count() or 1) * 1000,
            "memory": settings.max_memory_bytes or host_memory(),
            "pids": settings.max_pids,
        }

    def effective(self, spec: JobSpec) -> Limits:
        """The limits asked for with the defaults filled in.

        Raises:
            InvalidField: one is more than this host allows.
            LimitUnsupported: one can't be enforced here, and the request does not allow best effort.
        """
        for name, field in _FIELDS.items():
            asked = getattr(spec.limits, field)
            if asked is not None:
                self._check(name, asked)
                if name in self._unsupported and not spec.best_effort:
                    raise LimitUnsupported(name, self._unsupported[name])
        return replace(spec.limits, pids=spec.limits.pids or self._default_pids)

    def _check(self, name: str, asked: int) -> None:
        show, most = _FORMATS[name], self._maxima[name]
        if asked > most:
            raise InvalidField(f"limits.{name}", f"{show(asked)} is more than this host allows", show(most))

    def settable(self, limits: Limits) -> Limits:
        """Those of the limits that the hierarchy can set."""
        return replace(limits, **{_FIELDS[name]: None for name in self._unsupported})

    def status(self, asked: Limits, actual: Limits) -> tuple[LimitStatus, ...]:
        """For the job's record: each limit as asked for and as the kernel has it."""
        return tuple(
            self._status(name, getattr(asked, field), getattr(actual, field))
            for name, field in _FIELDS.items()
            if getattr(asked, field) is not None
        )

    def _status(self, name: str, asked: int, actual: int | None) -> LimitStatus:
        show = _FORMATS[name]
        if actual is None:
            reason = self._unsupported.get(name, "the kernel reports no limit")
            return LimitStatus(name, show(asked), "", Enforcement.UNSUPPORTED, reason)
        return LimitStatus(name, show(asked), show(actual), Enforcement.ENFORCED)

    def support(self) -> tuple[LimitSupport, ...]:
        """For those who ask what can be limited here."""
        defaults = {"pids": str(self._default_pids)}
        return tuple(
            LimitSupport(
                name=kind.limit,
                enforcement=Enforcement.UNSUPPORTED if kind.reason else Enforcement.ENFORCED,
                detail=kind.reason,
                default=defaults.get(kind.limit, ""),
                maximum=_FORMATS[kind.limit](self._maxima[kind.limit]),
            )
            for kind in self._kinds
        )


def host_memory() -> int:
    """In bytes, down to a whole MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20 << 20

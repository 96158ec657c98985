"""The vocabulary of limits: what a job may be held to, how each is written, and how far it holds."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jobworker import units
from jobworker.errors import InvalidField


class Enforcement(enum.Enum):
    ENFORCED = "ENFORCED"
    BEST_EFFORT = "BEST_EFFORT"
    UNSUPPORTED = "UNSUPPORTED"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use at the most; `None` means that nothing was asked for.

    Attributes:
        cpu_millis: thousandths of one CPU's time; 500 is half a CPU.
        cpu_weight: share of the CPU among jobs that want it at the same time; 100 is the usual one.
        cpuset: the CPUs that it may run on, as cpuset(7) lists them.
        memory_bytes: memory charged to the job's cgroup.
        swap_bytes: swap beyond that; none where memory is limited and this is not.
        pids: processes and threads at any one time.
        io_read_bps: bytes a second read from the disk that its working directory is on.
        io_write_bps: likewise written.
        io_read_ops: read operations a second there.
        io_write_ops: write operations a second there.
        io_device: that disk, as `MAJOR:MINOR`; found out by the supervisor.
    """

    cpu_millis: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    swap_bytes: int | None = None
    io_read_bps: int | None = None
    io_write_bps: int | None = None
    io_read_ops: int | None = None
    io_write_ops: int | None = None
    io_device: str | None = None

    def check(self) -> None:
        """Check each limit's range.

        Raises:
            InvalidField: a limit is outside of what any host could enforce.
        """
        for kind in KINDS:
            if (value := getattr(self, kind.field)) is not None:
                kind.check(f"limits.{kind.name}", value)
        if self.swap_bytes is not None and self.memory_bytes is None:
            raise InvalidField("limits.swap", "is nothing without limits.memory", "memory 64M and swap 16M")


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of limit.

    Attributes:
        name: what users, the API and records call it.
        field: of `Limits`.
        parse: makes a value of text, given a name for that in errors; raises InvalidField.
        show: the value as text, which `parse` takes.
        bounds: the least and the most that any host could enforce; None where that is not a quantity.
    """

    name: str
    field: str
    parse: Callable[[str, str], Any]
    show: Callable[[Any], str]
    bounds: tuple[int, int] | None

    def check(self, field: str, value: Any) -> None:
        """Check a value that was not parsed here.

        Raises:
            InvalidField: no host could enforce it.
        """
        if self.bounds is None:
            self.parse(value, field)
        else:
            units.check_range(field, value, self.bounds, self.show)

    def read(self, text: str, field: str) -> Any:
        """Parse and check.

        Raises:
            InvalidField: it is not of the form, or out of bounds.
        """
        value = self.parse(text, field)
        self.check(field, value)
        return value


# cpu.max takes no quota below 1 ms in a period of 100 ms.
CPU_RANGE = (10, 10_000_000)
MEMORY_RANGE = (1024**2, 2**50)
PIDS_RANGE = (1, 4_194_304)
_WEIGHT_RANGE = (1, 10_000)
_SWAP_RANGE = (0, 2**50)
_RATE_RANGE = (1024, 2**50)
# blkio keeps them in 32 bits.
_OPS_RANGE = (1, 2**32 - 1)

KINDS = (
    Kind("cpu", "cpu_millis", units.parse_cpu, units.format_cpu, CPU_RANGE),
    Kind("cpu_weight", "cpu_weight", units.parse_number, str, _WEIGHT_RANGE),
    Kind("cpuset", "cpuset", units.parse_cpu_list, str, None),
    Kind("memory", "memory_bytes", units.parse_size, units.format_size, MEMORY_RANGE),
    Kind("swap", "swap_bytes", units.parse_size, units.format_size, _SWAP_RANGE),
    Kind("pids", "pids", units.parse_number, str, PIDS_RANGE),
    Kind("io_read", "io_read_bps", units.parse_rate, units.format_rate, _RATE_RANGE),
    Kind("io_write", "io_write_bps", units.parse_rate, units.format_rate, _RATE_RANGE),
    Kind("io_read_ops", "io_read_ops", units.parse_number, str, _OPS_RANGE),
    Kind("io_write_ops", "io_write_ops", units.parse_number, str, _OPS_RANGE),
)
BY_NAME = MappingProxyType({kind.name: kind for kind in KINDS})
IO = frozenset({"io_read", "io_write", "io_read_ops", "io_write_ops"})


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """One limit of a job, as asked for and as the kernel has it.

    Attributes:
        name: of its kind.
        requested: as the client or the default had it, e.g. `50%`.
        value: as read back from the kernel, in the same form; empty where unsupported.
        detail: why it is not ENFORCED, or what it holds for.
    """

    name: str
    requested: str
    value: str
    enforcement: Enforcement
    detail: str = ""

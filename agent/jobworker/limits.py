"""The vocabulary of limits: what a job may be held to, how each is written, how far it holds, and its profiles."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from jobworker import units
from jobworker.errors import InvalidField

# All of the profiles and caps must fit one message between the agent's processes, beside the policy.
MAX_LIMIT_PROFILES, MAX_LIMITS_BYTES = 64, 32 * 1024
_PROFILE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


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

    def check(self, *, alone: bool = True) -> None:
        """Check each limit's range.

        Args:
            alone: these are all that there will be.

        Raises:
            InvalidField: a limit is outside of what any host could enforce.
        """
        for name, value in self.given():
            BY_NAME[name].check(f"limits.{name}", value)
        if alone and self.swap_bytes is not None and self.memory_bytes is None:
            raise InvalidField("limits.swap", "is nothing without limits.memory", "memory 64M and swap 16M")

    def given(self) -> Iterator[tuple[str, int | str]]:
        """Those that were asked for, by the names of their kinds."""
        for kind in KINDS:
            if (value := getattr(self, kind.field)) is not None:
                yield kind.name, value

    def parts(self) -> Iterator[Limits]:
        """Those that were asked for, one by one; memory and the swap beyond it are one."""
        for name, value in self.given():
            field: dict[str, Any] = {BY_NAME[name].field: value}
            if name == "memory":
                yield Limits(**field, swap_bytes=self.swap_bytes)
            elif name in IO:
                yield Limits(**field, io_device=self.io_device)
            elif name != "swap":
                yield Limits(**field)

    def over(self, base: Limits) -> Limits:
        """These, and of the others those that are not here. Swap stays with the memory that it is beyond."""
        fields: dict[str, Any] = {BY_NAME[name].field: value for name, value in base.given()}
        if self.memory_bytes is not None:
            fields.pop("swap_bytes", None)
        return replace(self, **{field: value for field, value in fields.items() if getattr(self, field) is None})


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

    def sent(self, value: Any) -> Any:
        """A value as the contract has it: numbers as such, what has a unit as text."""
        return value if self.show is str else self.show(value)

    def exceeds(self, asked: Any, most: Any) -> bool:
        """True if what is asked for is not within the most that there may be."""
        if self.bounds is None:
            return not units.cpus_of(asked, self.name) <= units.cpus_of(most, self.name)
        return bool(asked > most)

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
# What the kernel gives a job that asks for none.
USUAL_WEIGHT = 100
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
IO_WRITES = frozenset({"io_write", "io_write_ops"})
IO = frozenset({"io_read", "io_read_ops"}) | IO_WRITES


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


def with_changed(statuses: tuple[LimitStatus, ...], changed: tuple[LimitStatus, ...]) -> tuple[LimitStatus, ...]:
    """Statuses with others in the place of some, or beside them, in the order of their kinds."""
    by_name = {status.name: status for status in (*statuses, *changed)}
    return tuple(by_name[kind.name] for kind in KINDS if kind.name in by_name)


@dataclass(frozen=True, slots=True)
class LimitProfile:
    """Limits that are asked for by a name."""

    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class LimitProfiles:
    """What the limits file holds.

    Attributes:
        default: the profile of a job that asks for none; empty for none.
        caps: the most that any job may have, whoever asks for it.
    """

    profiles: tuple[LimitProfile, ...] = ()
    default: str = ""
    caps: Limits = NO_LIMITS

    def check(self) -> None:
        """Check that this is what a good file makes.

        Raises:
            InvalidField: it is not; `settings.limits_file` has refused it before, in words for people.
        """
        if len(self.profiles) > MAX_LIMIT_PROFILES:
            raise InvalidField("profiles", f"are {len(self.profiles)}, more than {MAX_LIMIT_PROFILES}")
        for profile in self.profiles:
            check_limit_profile(profile.name, "profiles")
            profile.limits.check()
        self.caps.check(alone=False)
        if self.default:
            self.of(self.default, "default")

    def of(self, name: str, field: str = "profile") -> Limits:
        """The limits of a profile; none for the empty name.

        Raises:
            InvalidField: there is no such profile.
        """
        for profile in self.profiles:
            if profile.name == name:
                return profile.limits
        if name:
            names = ", ".join(profile.name for profile in self.profiles)
            there = f"; there are {names}" if names else "; this agent has none"
            raise InvalidField(field, f"{name!r:.70} is not a profile of limits of this agent{there}")
        return NO_LIMITS


NO_PROFILES = LimitProfiles()


def check_limit_profile(name: str, field: str = "profile") -> str:
    """Return what can be the name of a profile of limits, or is empty.

    Raises:
        InvalidField: it can't be.
    """
    if name and not _PROFILE_NAME.fullmatch(name):
        problem = f"{name!r:.80} is not made of up to 63 of a-z, 0-9, `.`, `_` and `-`"
        raise InvalidField(field, problem, "small")
    return name

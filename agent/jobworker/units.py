"""Quantities as people write them, and back: shares of a CPU, sizes, rates, durations, lists of CPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from jobworker.errors import InvalidField

# CONFIG_NR_CPUS goes no further.
MAX_CPUS = 8192
# With a comma behind each of them.
_MAX_CPU_LIST = 5 * MAX_CPUS

_CPU = re.compile(r"([0-9]{1,7})(?:\.([0-9]))?%")
_SIZE = re.compile(r"([0-9]{1,19})(?:([KMGT])i?)?")
_DURATION = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?(ms|s|m|h|d)")
_NUMBER = re.compile(r"[0-9]{1,19}")
_CPU_LIST = re.compile(r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*")
_POWERS = {None: 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_cpu(text: str, field: str) -> int:
    """`50%` (of one CPU), `250%`, `12.5%` as thousandths of a CPU.

    Raises:
        InvalidField: the text is not of this form.
    """
    match = _CPU.fullmatch(text)
    if not match:
        raise InvalidField(field, f"{text!r:.40} is not a percentage of one CPU", "50%")
    return int(match[1]) * 10 + int(match[2] or 0)


def parse_size(text: str, field: str) -> int:
    """`256M`, `1G`, `512Ki` or plain bytes, in powers of 1024, as bytes.

    Raises:
        InvalidField: the text is not of this form.
    """
    return _bytes(text, InvalidField(field, f"{text!r:.40} is not a size", "256M"))


def parse_rate(text: str, field: str) -> int:
    """A size a second, `10M/s` or `10M`, as bytes a second.

    Raises:
        InvalidField: the text is not of this form.
    """
    return _bytes(text.removesuffix("/s"), InvalidField(field, f"{text!r:.40} is not a rate", "10M/s"))


def _bytes(text: str, otherwise: InvalidField) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise otherwise
    return int(match[1]) * _POWERS[match[2]]


def parse_number(text: str, field: str) -> int:
    """A whole number in decimal digits.

    Raises:
        InvalidField: the text is not of this form.
    """
    if not _NUMBER.fullmatch(text):
        raise InvalidField(field, f"{text!r:.40} is not a whole number", "100")
    return int(text)


def parse_cpu_list(text: str, field: str) -> str:
    """CPUs as cpuset(7) lists them, `0-2,5`: in order, and as short as can be.

    Raises:
        InvalidField: the text is not of this form.
    """
    return format_cpu_list(cpus_of(text, field))


def cpus_of(text: str, field: str) -> frozenset[int]:
    """The CPUs of such a list.

    Raises:
        InvalidField: the text is no such list.
    """
    if len(text) > _MAX_CPU_LIST or not _CPU_LIST.fullmatch(text):
        raise InvalidField(field, f"{text!r:.40} is not a list of CPUs", "0-2,5")
    # A bit for each: a short text can name all of them a thousand times.
    mask = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise InvalidField(field, f"{part!r} ends before it begins", "0-2,5")
        mask |= (2 << min(int(last or first), MAX_CPUS)) - (1 << min(int(first), MAX_CPUS + 1))
    return frozenset(number for number, bit in enumerate(reversed(f"{mask:b}")) if bit == "1")


def parse_duration(text: str, field: str) -> int:
    """`30s`, `1.5s`, `500ms`, `10m`, `2h`, `1d` as milliseconds.

    Raises:
        InvalidField: the text is not of this form.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise InvalidField(field, f"{text!r:.40} is not a duration", "30s")
    unit = _MILLISECONDS[match[3]]
    return int(match[1]) * unit + int((match[2] or "0").ljust(3, "0")) * unit // 1000


def format_cpu(millis: int) -> str:
    return f"{millis // 10}%" if millis % 10 == 0 else f"{millis / 10:.1f}%"


def format_size(size: int) -> str:
    for letter in "TGMK":
        if size and size % _POWERS[letter] == 0:
            return f"{size // _POWERS[letter]}{letter}"
    return str(size)


def format_rate(rate: int) -> str:
    return f"{format_size(rate)}/s"


def format_duration(ms: int) -> str:
    """In the largest unit that it is a whole number of."""
    if not ms:
        return "0s"
    return next(f"{ms // each}{unit}" for unit, each in reversed(_MILLISECONDS.items()) if ms % each == 0)


def format_cpu_list(cpus: Iterable[int]) -> str:
    ordered = sorted(cpus)
    starts = [cpu for before, cpu in pairwise([-2, *ordered]) if cpu != before + 1]
    ends = [cpu for cpu, after in pairwise([*ordered, -2]) if after != cpu + 1]
    return ",".join(
        str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)
    )


def check_range(field: str, value: int, bounds: tuple[int, int], show: Callable[[int], str]) -> None:
    """Check that a quantity is within bounds, both included.

    Raises:
        InvalidField: it is not.
    """
    low, high = bounds
    if not low <= value <= high:
        problem = f"{show(value)} is not between {show(low)} and {show(high)}"
        raise InvalidField(field, problem, show(high if value > high else min(max(low, 100), high)))

"""What a look for mistakes has found, check by check: the form that all `doctor` commands tell it in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class Level(enum.Enum):
    """How much it matters: all is well; something is missing or will be; this does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        check: what was looked at, in a word or two.
        told: how it is.
        level: of what was found.
        hint: what to do about it; empty where there is nothing to be done.
    """

    check: str
    told: str
    level: Level = Level.OK
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """Several, as one process hands them to another."""

    findings: tuple[Finding, ...]


def warning(check: str, told: str, hint: str) -> Finding:
    return Finding(check, told, Level.WARN, hint)


def failure(check: str, told: str, hint: str = "") -> Finding:
    return Finding(check, told, Level.FAIL, hint)


def by_reason(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Names, each behind its reason, under what they have in common: `cpu, memory: no cgroup is delegated`."""
    names: dict[str, list[str]] = {}
    for reason, name in pairs:
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(those)}: {reason}" for reason, those in names.items()]


def of_limits(
    mode: str, lacking: list[tuple[str, str]], partly: list[tuple[str, str]], held: list[str], hint: str
) -> Iterator[Finding]:
    """What can be limited on a host.

    Args:
        mode: of its cgroups.
        lacking: reasons and names of the limits that cannot be set.
        partly: likewise of those that do not hold for everything.
        held: names of those that can be set, these included.
        hint: what to do about what is lacking.
    """
    for told in by_reason(lacking):
        yield warning("limits", f"cannot be set (cgroups: {mode}): {told}", hint)
    if held:
        parts = (f"can be set (cgroups: {mode}): {', '.join(held)}", *by_reason(partly))
        yield Finding("limits", "; in part only ".join(parts))

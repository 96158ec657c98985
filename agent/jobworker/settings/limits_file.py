"""The limits file: YAML to profiles and caps (see `yaml_reader`), in the process of `worker-agent limits`."""

from __future__ import annotations

from typing import Any

from jobworker.errors import InvalidField
from jobworker.limits import (
    BY_NAME,
    MAX_LIMIT_PROFILES,
    MAX_LIMITS_BYTES,
    NO_LIMITS,
    LimitProfile,
    LimitProfiles,
    Limits,
    check_limit_profile,
)
from jobworker.settings import yaml_reader
from jobworker.settings.yaml_reader import Reader


def load(text: str) -> LimitProfiles:
    """Read a limits file.

    Raises:
        Mistakes: all that is wrong with it.
    """
    return yaml_reader.load(text, _file, empty="take all profiles away", most_bytes=MAX_LIMITS_BYTES)


def _file(reader: Reader, node: Any) -> LimitProfiles:
    parts = {"version": yaml_reader.version, "default": _default, "caps": _limits, "profiles": _profiles}
    found = reader.fields(node, "the file", parts)
    yaml_reader.require(reader, node, found, "version")
    made = LimitProfiles(found.get("profiles", ()), found.get("default", ""), found.get("caps", NO_LIMITS))
    names = [profile.name for profile in made.profiles]
    if made.default and made.default not in names:
        problem = f"{made.default!r:.70} is none of the profiles: {', '.join(names) or 'there are none'}"
        reader.wrong_beside(node, "default", problem, names[0] if names else "")
    for profile in made.profiles:
        _check_caps(reader, node, profile, made.caps)
    return made


def _check_caps(reader: Reader, node: Any, profile: LimitProfile, caps: Limits) -> None:
    most = dict(caps.given())
    for name, value in profile.limits.given():
        kind = BY_NAME[name]
        if name in most and kind.exceeds(value, most[name]):
            problem = f"{kind.show(value)} is more than caps.{name} lets any job have"
            reader.wrong_beside(node, f"profiles.{profile.name}.{name}", problem, kind.show(most[name]))


def _default(reader: Reader, node: Any, field: str) -> str:
    return reader.text(node, field, "small")


def _profiles(reader: Reader, node: Any, field: str) -> tuple[LimitProfile, ...]:
    found = reader.mapping(node, field)
    if len(found) > MAX_LIMIT_PROFILES:
        reader.wrong(node, field, f"has {len(found)} items, more than {MAX_LIMIT_PROFILES}")
    return tuple(_profile(reader, value, f"{field}.{name}", name) for name, value in found.items())


def _profile(reader: Reader, node: Any, field: str, name: str) -> LimitProfile:
    try:
        check_limit_profile(name)
    except InvalidField as error:
        reader.wrong(node, field, error.problem, error.example)
    limits = _limits(reader, node, field)
    if limits.swap_bytes is not None and limits.memory_bytes is None:
        reader.wrong_beside(node, f"{field}.swap", "is nothing without memory", "memory: 1G")
    return LimitProfile(name, limits)


def _limits(reader: Reader, node: Any, field: str) -> Limits:
    values: dict[str, Any] = {}
    found = reader.mapping(node, field)
    for name, value in found.items():
        if name in BY_NAME:
            values[BY_NAME[name].field] = reader.limit(value, f"{field}.{name}", name)
        elif name:
            reader.unknown_limit(value, f"{field}.{name}", name)
    if not found:
        reader.wrong(node, field, "says nothing; leave it out", "{cpu: 50%, memory: 256M, pids: 64}")
    return Limits(**values)

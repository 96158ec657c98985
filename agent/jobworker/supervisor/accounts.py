"""The host's users, as its own files have them: passwd(5) and group(5).

Not by way of the C library, which would load what nsswitch.conf(5) names into this process, and wait for
directories on the network while no job's output moves. Users that are nowhere but there do not exist here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobworker.errors import HostFault

_PASSWD, _GROUP = "/etc/passwd", "/etc/group"
_MAX_BYTES = 8 * 1024 * 1024
_DIGITS, _NO_ID = 10, 2**32 - 1
# setgroups(2).
_MAX_GROUPS = 65_536


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the host.

    Attributes:
        groups: those that it is a member of besides its own one.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find(name: str, passwd: str = _PASSWD, group: str = _GROUP) -> Account | None:
    """The user of this name; None if there is none.

    Raises:
        HostFault: the files can't be read.
    """
    for fields in _entries(passwd, 7):
        if fields[0] == name and (uid := _id(fields[2])) is not None and (gid := _id(fields[3])) is not None:
            return Account(name, uid, gid, _groups_of(name, group))
    return None


def _groups_of(name: str, path: str) -> tuple[int, ...]:
    found = (_id(fields[2]) for fields in _entries(path, 4) if name in fields[3].split(","))
    return tuple(dict.fromkeys(gid for gid in found if gid is not None))[:_MAX_GROUPS]


def _entries(path: str, size: int) -> Iterator[list[str]]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise HostFault.of("reading the host's users", error) from error
    if len(data) > _MAX_BYTES:
        raise HostFault("reading the host's users", "EFBIG", path)
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) == size:
            yield fields


def _id(text: str) -> int | None:
    """An id; the highest one means none to setresuid(2)."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else _NO_ID
    return number if number < _NO_ID else None

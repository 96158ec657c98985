"""Where an audit trail of an earlier life ends, whatever has become of its files since."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from jobworker import chain
from jobworker.chain import GENESIS, START, Head
from jobworker.kernel import beneath

_CHUNK = 64 * 1024
# No line is as long, nor what one round of lines may have left unfinished.
_MOST = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class End:
    """The end of a trail.

    Attributes:
        head: the last whole line.
        time: when that was made, as it says.
        fragment: bytes behind it that are no line, how many and their SHA-256; None if there are none.
        alone: there is nothing else in the open file.
        broken: what is wrong with the open file, if it can't be gone on with.
    """

    head: Head
    time: str = ""
    fragment: tuple[int, str] | None = None
    alone: bool = False
    broken: str = ""


def closed(directory_fd: int, name: str) -> list[int]:
    """The numbers of a trail's closed files, the oldest first."""
    prefix = f"{name}.log."
    numbers = [entry[len(prefix) :] for entry in os.listdir(directory_fd) if entry.startswith(prefix)]
    return sorted(int(number) for number in numbers if number.isdecimal())


def find(directory_fd: int, name: str) -> End:
    """The end of a trail, be it in the open file or the one before.

    Raises:
        OSError: it can't be read.
    """
    end = _end_of(directory_fd, f"{name}.log")
    if end and (end.broken or end.head != START):
        return end
    before = START, ""
    for number in reversed(closed(directory_fd, name)):
        older = _end_of(directory_fd, f"{name}.log.{number}")
        if older and older.head != START:
            before = older.head, older.time
            break
    fragment = end.fragment if end else None
    return End(*before, fragment, alone=fragment is not None)


def _end_of(directory_fd: int, name: str) -> End | None:
    """The end of one file; None if there is no such file."""
    try:
        fd = beneath.open_regular(directory_fd, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _read(fd: int) -> End:
    size = os.fstat(fd).st_size
    data, at = b"", size
    # Back to the newline before the last line, so that two of them are whole.
    while at and data.count(b"\n") < 3 and len(data) < _MOST:  # noqa: PLR2004
        step = min(_CHUNK, at)
        at -= step
        data = os.pread(fd, step, at) + data
    whole, newline, rest = data.rpartition(b"\n")
    if not newline and at:
        return End(START, broken=f"no line ends in its last {_MOST} bytes")
    fragment = (len(rest), chain.fingerprint(rest)) if rest else None
    if not newline:
        return End(START, fragment=fragment)
    lines = whole.split(b"\n")
    last = chain.split(lines[-1])
    before = chain.split(lines[-2]) if len(lines) > 1 else None
    if last is None or (before and chain.digest(before.hash, last.content) != last.hash):
        return _broken(last or before, "its last line is not as it was written")
    return End(Head(last.seq, last.hash), _time(lines[-1]), fragment)


def _broken(known: chain.Line | None, problem: str) -> End:
    return End(Head(known.seq, known.hash) if known else Head(0, GENESIS), broken=problem)


def _time(line: bytes) -> str:
    try:
        found = json.loads(line).get("time", "")
    except ValueError:
        return ""
    return found if isinstance(found, str) else ""


def follows(directory_fd: int, name: str) -> Head | None:
    """The line that a file follows, as its own first one says; None if that does not tell."""
    try:
        data = beneath.read_regular(directory_fd, name, _CHUNK)
        said = json.loads(data.partition(b"\n")[0])["prev"]
        return Head(int(said["seq"]), str(said["hash"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None

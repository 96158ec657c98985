"""How the lines of an audit trail are chained, so that none can be changed, dropped, inserted or moved unseen.

    {"seq":7,"time":"2026-11-24T16:41:52.123456789Z",…,"hash":"5f70…"}

A line is one JSON object in ASCII. Its hash is the SHA-256 over the hash of the line before it, as it is written
there, followed by the line's own bytes up to the comma before "hash". The first line of all follows `GENESIS`.
It is made over bytes and not over what they mean, so that checking needs no canonical form of JSON. The chain goes
on from file to file; each file begins with a line that says what it follows.
"""

from __future__ import annotations

import functools
import re
import time
from bisect import bisect_right
from dataclasses import dataclass

# Not hashlib: that loads OpenSSL, of which the root process has no use. Some builds of Python have nothing else.
try:
    from _sha256 import sha256  # type: ignore[import-not-found] # Python 3.11's own
except ImportError:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found] # that of 3.12 and later
    except ImportError:
        from hashlib import sha256

GENESIS = "0" * 64
# Below the state directory.
DIRECTORY = "audit"
# What root did and saw; what others asked, as the gateway tells it.
TRAILS = ("jobs", "calls")

_DIGITS = 64
_BEFORE_HASH, _BEHIND_HASH = b',"hash":"', b'"}'
_TAIL = len(_BEFORE_HASH) + _DIGITS + len(_BEHIND_HASH)
_HASH = re.compile(rb"[0-9a-f]{64}")
_SEQ = re.compile(rb'\{"seq":([1-9][0-9]{0,17}),')
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")
_NANOS = 1_000_000_000
# The years up to 9999, which is what RFC 3339 has.
_MAX_SECONDS = 253_402_300_800


@dataclass(frozen=True, slots=True)
class Head:
    """The last line of a trail, up to some time: its number, from 1 on, and its hash."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


START = Head(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Line:
    """A line's parts as they stand there; nothing is checked but its form."""

    seq: int
    content: bytes
    hash: str


def parse_head(text: str) -> Head | None:
    """`SEQ:HASH`; None if the text is something else."""
    match = _HEAD.fullmatch(text)
    return Head(int(match[1]), match[2]) if match else None


def fingerprint(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    text: str = sha256(data).hexdigest()
    return text


def digest(before: str, content: bytes) -> str:
    """The hash of a line with this content behind one with that hash."""
    return fingerprint(before.encode("ascii") + content)


def seal(head: Head, body: bytes) -> tuple[bytes, Head]:
    """The next line, its newline included, and the head of the trail with it.

    Args:
        head: of the trail so far.
        body: the line's members, `"time":…` and so on: JSON in ASCII, without a control character.
    """
    content = b'{"seq":%d,%s' % (head.seq + 1, body)
    following = Head(head.seq + 1, digest(head.hash, content))
    return b"%s%s%s%s\n" % (content, _BEFORE_HASH, following.hash.encode("ascii"), _BEHIND_HASH), following


def split(line: bytes) -> Line | None:
    """A line without its newline; None if it does not have the form of one."""
    content, tail = line[:-_TAIL], line[-_TAIL:]
    number, text = _SEQ.match(content), tail[len(_BEFORE_HASH) : -len(_BEHIND_HASH)]
    if not (number and tail.startswith(_BEFORE_HASH) and tail.endswith(_BEHIND_HASH) and _HASH.fullmatch(text)):
        return None
    return Line(int(number[1]), content, text.decode("ascii"))


def stamp(ns: int) -> str:
    """Nanoseconds of Unix time by RFC 3339, in UTC; empty for what is none. As text they compare as times."""
    if not 0 <= ns < _MAX_SECONDS * _NANOS:
        return ""
    seconds, nanos = divmod(ns, _NANOS)
    return f"{_to_the_second(seconds)}.{nanos:09d}Z"


@functools.lru_cache(16)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def floor_ns(text: str) -> int:
    """Nanoseconds of Unix time at or before a stamp, by less than a second."""
    # By its inverse: what the standard library reads times with would load datetime, locale and more into the
    # supervisor, which asks for this once. And no text, as of a damaged trail, is an error.
    return (bisect_right(range(_MAX_SECONDS), text, key=lambda seconds: stamp(seconds * _NANOS)) - 1) * _NANOS

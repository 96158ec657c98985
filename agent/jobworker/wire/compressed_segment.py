"""The form of a compressed segment of a log, which the supervisor writes and the gateway reads.

It is a gzip file (RFC 1952), so that zcat(1) reads it: one member for each 64 KiB of the segment, so that reading
can begin at any of them. An extra field tells how long a member is, as in BGZF: that leads from one to the next.
"""

from __future__ import annotations

import struct

SUFFIX = ".gz"
BLOCK_BYTES = 64 * 1024
# What deflate can't shrink grows by five bytes for each of its own blocks (RFC 1951, 3.2.4).
MAX_MEMBER_BYTES = BLOCK_BYTES + 1024
# Hopping to the end of a longer one would take too long.
MAX_SEGMENT_BYTES = 1024**3

# Magic, deflate, an extra field; no time, no hint, no system; the field's length, its name, what is in it.
_HEADER = struct.Struct("<4sIBBH2sHI")
HEADER_BYTES = _HEADER.size
_FIXED = (b"\x1f\x8b\x08\x04", 0, 0, 255, 8, b"JW", 4)
# After the data: its CRC-32, and its length.
TRAILER = struct.Struct("<II")


def header(member_bytes: int) -> bytes:
    """How a member begins that is so long, with this and its trailer."""
    return _HEADER.pack(*_FIXED, member_bytes)


def member_bytes(begins: bytes) -> int | None:
    """How long the member is that begins so; None if none of this form does."""
    if len(begins) != HEADER_BYTES:
        return None
    *fixed, length = _HEADER.unpack(begins)
    fits = HEADER_BYTES + TRAILER.size < length <= MAX_MEMBER_BYTES
    return length if fits and tuple(fixed) == _FIXED else None

"""Reading compressed segments from any offset: the block that holds it, and no other, is decompressed."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict

from jobworker.wire import compressed_segment as form
from jobworker.wire.compressed_segment import BLOCK_BYTES

# Readers go on where they were, or a bit before; 4 MiB in all.
_KEPT = 64
# After so many damaged blocks others have their turn.
_LOOK_AHEAD = 64


class Blocks:
    """The blocks that were read last, of all segments."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._files = 0

    def number(self) -> int:
        """A number for another file."""
        self._files += 1
        return self._files

    def get(self, file: int, block: int) -> bytes | None:
        if (file, block) in self._blocks:
            self._blocks.move_to_end((file, block))
        return self._blocks.get((file, block))

    def put(self, file: int, block: int, data: bytes) -> None:
        self._blocks[file, block] = data
        if len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)


class Compressed:
    """A compressed segment; what of it is damaged is found to be so, and the rest can be read.

    Args:
        fd: not owned.
        length: of the segment, in bytes of output.
    """

    __slots__ = ("_blocks", "_fd", "_length", "_number", "_starts")

    def __init__(self, fd: int, length: int, blocks: Blocks) -> None:
        self._fd, self._length, self._blocks = fd, length, blocks
        self._number = blocks.number()
        # Where the members begin, as far as is known.
        self._starts = [0]

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from an offset in the segment on; fewer where it ends or is damaged.

        Raises:
            OSError: the disk fails.
        """
        data = bytearray()
        end = min(offset + size, self._length)
        while (at := offset + len(data)) < end:
            number, skip = divmod(at, BLOCK_BYTES)
            block = self._block(number)
            if not block:
                break
            data += block[skip : skip + end - at]
        return bytes(data)

    def damage_ends(self, offset: int) -> int:
        """How far the damage goes at least that an offset is in; to the segment's end if nothing leads on."""
        first = offset // BLOCK_BYTES + 1
        for number in range(first, first + _LOOK_AHEAD):
            if number * BLOCK_BYTES >= self._length or not self._member(number):
                return self._length
            if self._block(number):
                break
        return number * BLOCK_BYTES

    def _block(self, number: int) -> bytes:
        """Empty if it is damaged."""
        block = self._blocks.get(self._number, number)
        if block is None:
            block = _decompress(self._member(number), min(BLOCK_BYTES, self._length - number * BLOCK_BYTES))
            self._blocks.put(self._number, number, block)
        return block

    def _member(self, number: int) -> bytes:
        """The member that holds a block; empty if the way there leads over damage."""
        while len(self._starts) <= number:
            start = self._starts[-1]
            length = form.member_bytes(os.pread(self._fd, form.HEADER_BYTES, start))
            if length is None:
                return b""
            self._starts.append(start + length)
        data = os.pread(self._fd, form.MAX_MEMBER_BYTES, self._starts[number])
        return data[: form.member_bytes(data[: form.HEADER_BYTES]) or 0]


def _decompress(member: bytes, length: int) -> bytes:
    """What a member holds; empty if that is not so many bytes, with the checksum that it says."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        # No more is made than there can be, whatever it would become.
        data = unpacker.decompress(member, length)
        if not unpacker.eof and len(data) == length:
            # All is out, but the checksum may not have been looked at.
            data += unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error:
        return b""
    return data if unpacker.eof and not unpacker.unused_data and len(data) == length else b""

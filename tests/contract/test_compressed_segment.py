"""Compressed segments: what the supervisor's helper writes, the gateway reads; and so does zcat."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.gateway.compressed import Blocks, Compressed
from jobworker.supervisor import compression
from jobworker.wire import compressed_segment as form
from jobworker.wire.compressed_segment import BLOCK_BYTES

NAME = "job_k7f3-9m2q-x4tz-b1cd"
BLOCKS = 5
# The last block is a short one.
SIZE = (BLOCKS - 1) * BLOCK_BYTES + 1234
TEXT = "".join(f"line {number}: the same as all others\n" for number in range(SIZE // 20)).encode()[:SIZE]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same each time


def plain(directory: Path, number: int = 0) -> Path:
    return directory / f"{NAME}.log.{number}"


def compress(directory: Path, size: int = SIZE) -> tuple[int, int] | None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return compression.compress_next(fd, NAME, size)
    finally:
        os.close(fd)


def compressed(directory: Path, data: bytes = TEXT) -> bytes:
    """The file that becomes of a segment."""
    plain(directory).write_bytes(data)
    assert compress(directory, len(data))
    return plain(directory).with_suffix(".0.gz").read_bytes()


def reader(file: bytes, length: int = SIZE) -> Compressed:
    fd = os.memfd_create("compressed")
    os.write(fd, file)
    # It is closed with the process of the test.
    return Compressed(fd, length, Blocks())


def served(file: bytes, length: int = SIZE) -> dict[int, bytes]:
    """What there is to be had of a file from its beginning, by offset, over all that is damaged."""
    made, at, parts = reader(file, length), 0, {}
    while at < length:
        if data := made.read(at, length):
            parts[at] = data
            at += len(data)
        else:
            ends = made.damage_ends(at)
            assert at < ends <= length
            at = ends
    return parts


def check(file: bytes, whole: bytes = TEXT) -> None:
    for offset, data in served(file, len(whole)).items():
        assert data == whole[offset : offset + len(data)]


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, SIZE])
def test_it_is_what_it_was_also_for_zcat(tmp_path: Path, size: int) -> None:
    data = b"x" * size if size < BLOCK_BYTES else TEXT[:size]
    plain(tmp_path).write_bytes(data)
    done = compress(tmp_path, size)
    if size == 1:
        assert (done, plain(tmp_path).read_bytes()) == (None, data)
        return
    (file,) = tmp_path.iterdir()
    assert (file.name, done) == (f"{NAME}.log.0.gz", (0, file.stat().st_size))
    assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0
    assert served(file.read_bytes(), size) == {0: data}
    assert subprocess.run(["zcat", str(file)], capture_output=True, check=True).stdout == data


@given(st.data())
def test_any_part_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = TEXT[: 2 * BLOCK_BYTES] + noise(BLOCK_BYTES) + TEXT[3 * BLOCK_BYTES :]
    made = reader(compressed(tmp_path_factory.mktemp("any"), whole))
    for _ in range(4):
        offset = data.draw(st.integers(0, SIZE + 10))
        size = data.draw(st.integers(0, SIZE + 10))
        assert made.read(offset, size) == whole[offset : offset + size]


def test_what_does_not_shrink_is_left_and_not_tried_again(tmp_path: Path) -> None:
    plain(tmp_path).write_bytes(noise(SIZE))
    plain(tmp_path, 1).write_bytes(TEXT)
    assert compress(tmp_path) == (1, plain(tmp_path).with_suffix(".1.gz").stat().st_size)
    assert plain(tmp_path).read_bytes() == noise(SIZE)
    plain(tmp_path).write_bytes(TEXT)
    assert compress(tmp_path) is None
    assert not plain(tmp_path, 1).exists()


@pytest.mark.parametrize("length", [0, SIZE - 1, SIZE + 1])
def test_a_segment_that_is_not_whole_is_left(tmp_path: Path, length: int) -> None:
    plain(tmp_path).write_bytes((TEXT + b"x")[:length])
    assert compress(tmp_path) is None
    assert os.listdir(tmp_path) == [plain(tmp_path).name]


def test_what_is_not_a_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(TEXT)
    plain(tmp_path, 0).symlink_to("secret")
    os.mkfifo(plain(tmp_path, 1))
    plain(tmp_path, 2).mkdir()
    before = sorted(os.listdir(tmp_path))
    assert compress(tmp_path) is None
    assert sorted(os.listdir(tmp_path)) == before


def test_the_plain_file_is_the_truth_while_it_is_there(tmp_path: Path) -> None:
    plain(tmp_path).with_suffix(".0.gz").write_bytes(b"of a life that was cut off")
    assert served(compressed(tmp_path)) == {0: TEXT}
    assert not plain(tmp_path).exists()


def test_two_helpers_never_do_the_same(tmp_path: Path) -> None:
    plain(tmp_path).write_bytes(TEXT)
    with plain(tmp_path).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert compress(tmp_path) is None
    assert compress(tmp_path)


def test_a_full_disk_leaves_the_plain_file(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = 64 * BLOCK_BYTES
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4400k", "tmpfs", str(small)], check=True)
    try:
        data = b"".join(noise(BLOCK_BYTES // 2, number) + bytes(BLOCK_BYTES // 2) for number in range(64))
        plain(small).write_bytes(data)
        with pytest.raises(OSError, match="No space") as caught:
            compress(small, size)
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(small) == [plain(small).name]
        assert plain(small).read_bytes() == data
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_an_edited_block_is_missing_and_the_rest_is_served(tmp_path: Path, block: int) -> None:
    file = bytearray(compressed(tmp_path))
    starts = [0]
    while (start := starts[-1]) < len(file):
        starts.append(start + (form.member_bytes(bytes(file[start : start + form.HEADER_BYTES])) or 0))
    file[starts[block] + form.HEADER_BYTES + 5] ^= 0xFF
    missing = range(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, SIZE))
    parts = served(bytes(file))
    assert sum(map(len, parts.values())) == SIZE - len(missing)
    assert not any(set(range(at, at + len(data))) & set(missing) for at, data in parts.items())
    check(bytes(file))


@given(st.data())
def test_damage_is_never_served(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = bytearray(compressed(tmp_path_factory.mktemp("damage")))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(file[: data.draw(st.integers(0, len(file)))]))


@given(st.binary(max_size=200))
def test_what_is_no_such_file_at_all_is_a_gap(file: bytes) -> None:
    assert served(file) == {}
    assert served(form.header(len(file) + form.HEADER_BYTES) + file) == {}


def test_a_truncated_file_is_served_up_to_there(tmp_path: Path) -> None:
    file = compressed(tmp_path)
    parts = served(file[: len(file) // 2])
    assert list(parts) == [0]
    assert len(parts[0]) % BLOCK_BYTES == 0 < len(parts[0]) < SIZE


def test_no_more_is_made_of_a_block_than_it_can_be() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(40_000_000)) + packer.flush()
    bomb += form.TRAILER.pack(zlib.crc32(bytes(40_000_000)), 40_000_000)
    file = form.header(form.HEADER_BYTES + len(bomb)) + bomb
    assert len(bomb) < form.MAX_MEMBER_BYTES
    assert served(file) == {}

"""Removing trees that a job has made to be in the way."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobworker.supervisor import removal

# As another user, with a descriptor of the directory: swaps directories of its own and links, all the time.
SWAPS = """
import ctypes, os, sys
held, kept = int(sys.argv[1]), sys.argv[2]
os.setresuid(1900000001, 1900000001, 1900000001)
os.mkdir("own", dir_fd=held)
own = os.open("own", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
pairs = [(b"directory%d" % number, b"link%d" % number) for number in range(1000)]
for directory, link in pairs:
    os.mkdir(directory, dir_fd=own)
    os.close(os.open(directory + b"/file", os.O_CREAT, dir_fd=own))
    os.symlink(kept, link, dir_fd=own)
print("ready", flush=True)
renameat2, exchange = ctypes.CDLL(None).renameat2, 2
while True:
    for directory, link in pairs:
        renameat2(own, directory, own, link, exchange)
"""
# A pass that remembers no names takes less; a name takes about 70 bytes.
SMALL = 256 << 10


def remove(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        removal.remove(parent, (path.name,))
    finally:
        os.close(parent)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory for so many files that a disk would take long over them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="jobworker-test-") as path:
        yield Path(path)


def peak_of(work: Callable[[], None]) -> int:
    """How many bytes of memory this takes at the most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def make_deep(path: Path, levels: int) -> None:
    """Deeper than any path that the kernel takes."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("down", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT, dir_fd=fd))
        below = os.open("down", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_deeper_than_paths_recursion_and_descriptors_go(tmp_path: Path) -> None:
    make_deep(tmp_path / "job", 5000)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A few beside those that earlier tests have left open.
    most = max(map(int, os.listdir("/proc/self/fd"))) + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        remove(tmp_path / "job")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_is_linked_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept" / "below").mkdir(parents=True)
    (tmp_path / "kept" / "file").write_text("x")
    job = tmp_path / "job"
    (job / "work").mkdir(parents=True)
    (job / "work" / "directory").symlink_to(tmp_path / "kept")
    (job / "work" / "file").symlink_to(tmp_path / "kept" / "file")
    (job / "work" / "hard").hardlink_to(tmp_path / "kept" / "file")
    os.mkfifo(job / "work" / "fifo")
    remove(job)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "kept",
        "kept/below",
        "kept/file",
    ]


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "job").symlink_to("kept")
    remove(tmp_path / "job")
    assert (tmp_path / "kept" / "file").read_text() == "x"


def test_directories_without_rights_and_odd_names_go(tmp_path: Path) -> None:
    shut = tmp_path / "job" / "work" / "shut\n" / os.fsdecode(b"\xff")
    shut.mkdir(parents=True)
    (shut / "file").write_text("x")
    shut.chmod(0)
    shut.parent.chmod(0)
    remove(tmp_path / "job")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_link_that_another_job_puts_in_a_directory_s_place_is_not_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    kept, work = tmp_path / "kept", tmp_path / "job" / "work"
    work.mkdir(parents=True)
    kept.mkdir(mode=0o755)
    work.chmod(0o777)
    held = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPS, str(held), str(kept)], pass_fds=[held], stdout=-1)
    try:
        assert swapper.stdout
        assert swapper.stdout.readline() == b"ready\n"
        remove(tmp_path / "job")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o755
    finally:
        swapper.kill()
        swapper.communicate()
        os.close(held)


def test_any_number_of_files_takes_no_more_memory(in_memory: Path) -> None:
    (in_memory / "job").mkdir()
    fd = os.open(in_memory / "job", os.O_RDONLY)
    for number in range(100_000):
        os.close(os.open(f"f{number}", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    assert peak_of(lambda: remove(in_memory / "job")) < SMALL
    assert list(in_memory.iterdir()) == []


def test_any_number_of_directories_takes_no_more_memory(in_memory: Path) -> None:
    (in_memory / "job").mkdir()
    fd = os.open(in_memory / "job", os.O_RDONLY)
    for number in range(10_000):
        os.mkdir(f"d{number}", dir_fd=fd)
        # One that is moved, and one that can go where it is.
        os.mkdir(f"d{number}/file", dir_fd=fd)
    os.close(fd)
    assert peak_of(lambda: remove(in_memory / "job")) < SMALL
    assert list(in_memory.iterdir()) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system that somebody has mounted deep in the directory `job`."""
    path = tmp_path / "job" / "work" / "deep" / "mounted"
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "jobworker-test", path], check=True)
    yield path
    subprocess.run(["umount", "--recursive", *tmp_path.rglob("mounted")], check=True)


@pytest.mark.root
def test_what_cannot_be_removed_keeps_nothing_else(tmp_path: Path, mounted: Path) -> None:
    (mounted / "kept").mkdir()
    (mounted / "kept" / "file").write_text("x")
    for number in range(5_000):
        (mounted.parent / f"f{number}").touch()
        (mounted.parent / f"d{number}" / "below").mkdir(parents=True)
    remove(tmp_path / "job")
    found = next(tmp_path.rglob("mounted"))
    assert [path for path in tmp_path.rglob("*") if found not in path.parents] == [
        tmp_path / "job",
        found.parent,
        found,
    ]
    # It is not the job's, whatever the job has mounted there.
    assert stat.S_IMODE(found.stat().st_mode) == 0o755
    assert (found / "kept" / "file").read_text() == "x"


def test_what_one_pass_does_not_see_the_next_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.scandir

    class Half(contextlib.AbstractContextManager["Half"]):
        """Reads every second entry, as where removing shifts those behind."""

        def __init__(self, fd: int) -> None:
            self._entries = whole(fd)

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return itertools.islice(self._entries, 0, None, 2)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    for number in range(100):
        (tmp_path / "job" / f"d{number}" / "below").mkdir(parents=True)
        (tmp_path / "job" / f"f{number}").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Half)
        remove(tmp_path / "job")
    assert list(tmp_path.iterdir()) == []

"""Removing trees that a job has made to be in the way."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobworker.supervisor import removal

# As another user, with a descriptor of the directory: swaps one of its own and a link, all the time.
SWAPS = """
import ctypes, os, sys
held, kept = int(sys.argv[1]), sys.argv[2]
os.setresuid(1900000001, 1900000001, 1900000001)
os.mkdir("own", dir_fd=held)
own = os.open("own", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
for number in range(20_000):
    os.mkdir(f"d{number}", dir_fd=own)
os.symlink(kept, "link", dir_fd=own)
os.mkdir("last", dir_fd=own)
print("ready", flush=True)
renameat2, exchange = ctypes.CDLL(None).renameat2, 2
while True:
    renameat2(own, b"last", own, b"link", exchange)
"""


def remove(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        removal.remove(parent, (path.name,))
    finally:
        os.close(parent)


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

"""Making a cgroup fails at each of its steps for want of a descriptor: nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobworker.kernel.cgroup import tree
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import V1Hierarchy
from jobworker.kernel.cgroup.v2 import V2Hierarchy
from jobworker.limits import NO_LIMITS
from support.cgroup_places import v2_place
from support.scarce import open_files, room_for
from support.waiting import until

pytestmark = pytest.mark.root

NAME = "k7f3-9m2q-x4tz-b1cd"


@pytest.fixture
def base() -> Iterator[Path]:
    with v2_place() as path:
        yield path


def v1(base: Path) -> Hierarchy:
    holder, pids = (Base(lambda: CgroupDir.open(str(base))) for _ in range(2))
    return V1Hierarchy("hybrid", "", holder, {"pids": pids}, ())


def v2(base: Path) -> Hierarchy:
    return V2Hierarchy("", Base(lambda: CgroupDir.open(str(base))), CgroupDir.open(str(base.parent)))


@pytest.mark.usefixtures("one_life")
@pytest.mark.parametrize("made", [v1, v2])
@pytest.mark.parametrize("call", ["create", "adopt"])
def test_a_group_that_cannot_be_opened(base: Path, made: Callable[[Path], Hierarchy], call: str) -> None:
    hierarchy = made(base)
    for room in range(10):
        if call == "adopt":
            (base / NAME).mkdir(exist_ok=True)
        before = open_files()
        try:
            with room_for(room):
                group = hierarchy.create(NAME, NO_LIMITS) if call == "create" else hierarchy.adopt(NAME)
        except OSError:
            assert open_files() == before
            assert (base / NAME).exists() == (call == "adopt")
        else:
            # At first there was too little.
            assert room > 1
            group.remove()
            assert open_files() == before
            return
    pytest.fail("it cannot be made at all")


@pytest.mark.usefixtures("one_life")
def test_a_base_that_was_removed_is_made_again_when_that_is_possible(base: Path) -> None:
    top = CgroupDir.open(str(base))
    place = Base(lambda: top.make_below("a/b", lambda parent, _: os.close(os.dup(parent.fd))))
    before = open_files()
    for room in range(10):
        (base / "a" / "b").rmdir()
        try:
            with room_for(room):
                made = place.make_child("c")
        except OSError:
            # What it had open it has still, lest the number be another file's.
            assert open_files() == before
            (base / "a" / "b").mkdir(exist_ok=True)
        else:
            assert room > 1
            made.close()
            assert open_files() == before
            for name in ("a/b/c", "a/b", "a"):
                (base / name).rmdir()
            return
    pytest.fail("it cannot be made at all")


# Its children end as it does, by the signal.
_CROWD = """
import os, signal
for _ in range({count}):
    if not os.fork():
        signal.pause()
print("there", flush=True)
signal.pause()
"""


@pytest.mark.usefixtures("one_life")
def test_more_processes_than_descriptors_are_signalled(base: Path) -> None:
    (base / NAME).mkdir()
    # More of them than one read of the file tells, and than can be signalled at a time.
    group, room, count = CgroupDir.open(str(base / NAME)), 300, 1000

    def join() -> None:
        (base / NAME / "cgroup.procs").write_text("0")

    command = [sys.executable, "-I", "-S", "-c", _CROWD.format(count=count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=join) as crowd:
        try:
            assert crowd.stdout
            assert crowd.stdout.readline() == b"there\n"
            assert len(group.pids()) == count + 1
            with room_for(room):
                tree.signal_all(group, signal.SIGTERM)
            until(group.pids, [])
        finally:
            tree.kill(group)


# The init of a namespace is a child of this one's parent.
_FAILS = """
import errno, os, sys
if child := os.fork():
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.exit(os.waitstatus_to_exitcode(status))
from jobworker.kernel import pid_namespace
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v2 import V2Hierarchy
from jobworker.limits import NO_LIMITS
base, name = sys.argv[1:]
hierarchy = V2Hierarchy("", Base(lambda: CgroupDir.open(base)), CgroupDir.open(os.path.dirname(base)))
group = hierarchy.create(name, NO_LIMITS)
before = os.listdir("/proc/self/fd")
try:
    with pid_namespace.entered(group):
        raise OSError(errno.EAGAIN, "no process to be had")
except OSError as error:
    print(error.strerror)
assert os.listdir("/proc/self/fd") == before
group.remove()
os._exit(0 if not hierarchy.names() else 1)
"""


def test_nothing_is_left_of_a_namespace_that_no_command_came_into(base: Path) -> None:
    command = [sys.executable, "-u", "-c", _FAILS, str(base), NAME]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "no process to be had\n"), ended.stderr

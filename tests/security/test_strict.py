"""What the profile `strict` adds: namespaces of processes and of the network, and Landlock."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jobworker.errors import StartFailed
from jobworker.jobs import EndReason
from jobworker.kernel import landlock
from support.gates import gate, open_gate
from support.leftovers import cgroups
from support.link import Link
from support.root_side import RootSide, fresh_root_side
from support.scripts import PYTHON, python, run, shell

pytestmark = pytest.mark.root

CONFINED = pytest.mark.parametrize("sandbox", ["standard", "strict"])


def test_in_strict_there_is_no_network_but_its_own_loopback(link: Link) -> None:
    script = "import socket; print(*(name for _, name in socket.if_nameindex()))"
    assert python(link, script, "strict") == "lo\n"
    # It is up.
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    assert run(link, *PYTHON, script, sandbox="strict")[0].exit_code == 0


def test_in_strict_a_job_is_its_namespace_s_second_process(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", sandbox="strict")
    with open(f"/proc/{job.pid}/status") as file:
        assert next(line for line in file if line.startswith("NSpid")).split()[-1] == "2"
    assert link.stop(job.job_id, force=True).signal == signal.SIGKILL


@pytest.mark.parametrize(
    ("script", "reason", "field", "value"),
    [
        ("exit 7", EndReason.EXITED, "exit_code", 7),
        ("kill -SEGV $$", EndReason.SIGNALED, "signal", signal.SIGSEGV),
        ("(sleep 0.2; echo late) & exit 9", EndReason.EXITED, "exit_code", 9),
        # Of an init, which it is not, these would be ignored.
        ("kill -TERM $$; sleep 1000", EndReason.SIGNALED, "signal", signal.SIGTERM),
    ],
)
def test_in_strict_it_ends_as_it_would_elsewhere(
    link: Link, script: str, reason: EndReason, field: str, value: int
) -> None:
    record, output = run(link, "/bin/sh", "-c", script, sandbox="strict")
    assert (record.end_reason, getattr(record, field)) == (reason, value)
    assert output == ("late\n" if "late" in script else "")
    assert cgroups(record.job_id) == []


def test_in_strict_what_it_leaves_behind_is_reaped(link: Link) -> None:
    script = "for i in 1 2 3; do (setsid sleep 0 &) ; done; sleep 0.5; ps -e -o stat= | grep -c Z"
    assert shell(link, script, "strict") == "0\n"


def test_in_strict_a_stop_is_asked_for_before_it_is_forced(link: Link) -> None:
    job = link.start(
        "/bin/sh", "-c", "trap 'echo told; exit 4' TERM; echo up; while :; do sleep 0.01; done", sandbox="strict"
    )
    link.wait_output(job.job_id)
    ended = link.stop(job.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.STOPPED, 4)
    assert link.read_log(ended).endswith(b"told\n")


@CONFINED
def test_what_cannot_be_executed_leaves_nothing(link: Link, side: RootSide, sandbox: str) -> None:
    with open(f"{side.state_dir}/instance") as file:
        instance = file.read()
    link.wait_ended(link.start("/bin/true", sandbox=sandbox).job_id)
    before = side.open_files(link)
    for _ in range(20):
        with pytest.raises(StartFailed):
            link.start("/no/such/program", sandbox=sandbox)
    assert side.open_files(link) <= before
    left = [name for path in cgroups(instance) for name in os.listdir(path) if name.count("-") == 3]
    assert [name for name in left if name not in os.listdir(f"{side.state_dir}/jobs")] == []


def test_in_strict_not_even_root_s_job_sees_what_its_init_knows() -> None:
    rule = "{name: root, allow: [Start], users: [root], allow_root: true, sandboxes: [strict]}"
    with fresh_root_side(policy=f"version: 1\nrules: [{rule}]\n") as side:
        look = "for file in environ mem maps; do cat /proc/1/$file 2>&1; done; cat /proc/1/comm"
        said = shell(side.link(subscribe=True), look, "strict", user="root")
    denied = [f"cat: /proc/1/{file}: Permission denied" for file in ("environ", "mem", "maps")]
    assert said.splitlines() == [*denied, "jw-init"]


def test_in_strict_it_outlives_supervisor_and_keeper(side: RootSide) -> None:
    link = side.link(subscribe=True)
    script = f"echo one; read x < {gate(side, 'outlive')}; echo two; exit 5"
    job = link.start("/bin/sh", "-c", script, sandbox="strict")
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    link = side.reconnect(subscribe=True)
    open_gate(side, "outlive")
    ended = link.wait_ended(job.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 5)
    assert link.read_log(ended) == b"one\ntwo\n"
    assert ended.sandbox == job.sandbox


# Landlock, which keeps from the same as the mounts do, alone.


def _in_a_child(act: Callable[[], None]) -> int:
    """Its error number; 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def landlock_version() -> int:
    try:
        return landlock.version()
    except OSError as error:
        pytest.skip(f"this kernel has no Landlock: {error}")


@pytest.mark.parametrize(
    ("path", "outcome"), [("own/file", 0), ("other", errno.EACCES), ("/etc/planted", errno.EACCES)]
)
def test_landlock_keeps_from_writing_elsewhere(
    tmp_path: Path, landlock_version: int, path: str, outcome: int
) -> None:
    (tmp_path / "own").mkdir()

    def act() -> None:
        os.chdir(tmp_path)
        libc = ctypes.CDLL(None)
        libc.prctl(38, 1, 0, 0, 0)
        landlock.restrict(landlock_version, ("own", "missing"))
        with open("/dev/null", "w") as null, open("/etc/passwd") as passwd:
            null.write(passwd.read())
        with open(path, "w"):
            pass

    assert _in_a_child(act) == outcome


def test_in_strict_landlock_closes_what_a_read_only_mount_leaves_open(link: Link) -> None:
    # A FIFO is written to without writing to its file system.
    with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir="/var/lib") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        os.mkfifo(f"{directory}/fifo")
        os.chmod(f"{directory}/fifo", 0o666)  # noqa: S103
        reading = os.open(f"{directory}/fifo", os.O_RDONLY | os.O_NONBLOCK)
        assert shell(link, f"echo x > {directory}/fifo && echo done", "standard") == "done\n"
        assert "ermission denied" in shell(link, f"echo x > {directory}/fifo && echo done", "strict")
        os.close(reading)

"""What a hostile job tries, under each sandbox profile; and that each part of one is what keeps it from it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import HostFault, InvalidField, PolicyDenied, SandboxUnsupported
from jobworker.jobs import EndReason, JobSpec
from jobworker.limits import Limits
from jobworker.sandbox import PARTS, Part, Profile
from jobworker.settings.schema import IsolationSettings
from jobworker.wire import messages
from support.callers import caller
from support.gates import gate, open_gate
from support.leftovers import cgroups
from support.link import Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.scripts import PYTHON, python, run, shell
from support.waiting import until

pytestmark = pytest.mark.root

_OPERATOR = "spiffe://test/user/operator"
# Linux 5.12.
_NR_MOUNT_SETATTR = 442
CONFINED = pytest.mark.parametrize("sandbox", ["standard", "strict"])


# Files.


@CONFINED
def test_the_system_is_read_only(link: Link, sandbox: str) -> None:
    places = "/ /etc /usr/bin /var/lib /root /sys/fs/cgroup /proc/sys/kernel /dev /run"
    said = shell(link, f"for d in {places}; do touch $d/planted && echo $d; done 2>/dev/null", sandbox)
    assert said == ""


@CONFINED
def test_no_mount_is_left_writable(link: Link, side: RootSide, sandbox: str) -> None:
    own = link.start("/bin/sleep", "1000", sandbox=sandbox)
    with open(f"/proc/{own.pid}/mountinfo") as file:
        lines = [line.split() for line in file]
    link.stop(own.job_id, force=True)
    writable = {fields[4] for fields in lines if "rw" in fields[5].split(",")}
    expected = {own.workdir, side.settings.isolation.writable[0], "/tmp", "/var/tmp", "/dev/shm", "/proc"}  # noqa: S108
    assert writable <= expected
    assert all("nosuid" in fields[5].split(",") for fields in lines)


@CONFINED
def test_what_it_needs_is_writable(link: Link, sandbox: str) -> None:
    said = shell(
        link, "for d in . /tmp /var/tmp /dev/shm; do echo hello > $d/f && cat $d/f; done; : > /dev/null", sandbox
    )
    assert said == "hello\n" * 4


@CONFINED
def test_tmp_is_its_own_and_gone_afterwards(link: Link, sandbox: str) -> None:
    name = f"planted-{os.getpid()}"
    shell(link, f"touch /tmp/{name} /var/tmp/{name} /dev/shm/{name}", sandbox)
    assert not any(os.path.exists(f"{place}/{name}") for place in ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108
    assert shell(link, f"ls /tmp /var/tmp /dev/shm | grep -c {name}", sandbox) == "0\n"


@CONFINED
@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])  # noqa: S108
def test_what_it_puts_there_counts_as_its_memory(link: Link, sandbox: str, place: str) -> None:
    fill = f"head -c 200M /dev/zero > {place}/big"
    record, _ = run(link, "/bin/sh", "-c", fill, sandbox=sandbox, limits=Limits(memory_bytes=32 * 1024**2))
    assert record.end_reason is EndReason.OOM_KILLED


@CONFINED
def test_no_link_leads_what_stays_writable_elsewhere(sandbox: str) -> None:
    # In /tmp nothing of the host's is seen.
    with tempfile.TemporaryDirectory(dir="/srv") as directory, tempfile.NamedTemporaryFile() as hidden:
        place = Path(directory)
        (place / "b" / "a" / "cache").mkdir(parents=True)
        (place / "other" / "cache").mkdir(parents=True)
        for open_to_all in (place, *place.rglob("*")):
            os.chmod(open_to_all, 0o777)  # noqa: S103
        (place / "shared").symlink_to("/tmp")  # noqa: S108
        writable = (f"{place}/b", f"{place}/b/a/cache", f"{place}/shared")
        with fresh_root_side(isolation=IsolationSettings(writable=writable)) as side:
            link = side.link(subscribe=True)
            turn = f"cd {place}/b; echo 1 > a/cache/x && rm -r a && ln -s {place}/other a && echo turned"
            assert shell(link, turn, sandbox) == "turned\n"
            look = f"touch {place}/b/y && echo writable; touch {place}/b/a/cache/x; ls {hidden.name}"
            said = shell(link, f"({look}) 2>&1", sandbox)
        assert "writable\n" in said
        assert "Read-only file system" in said
        assert f"cannot access '{hidden.name}'" in said
        assert not list((place / "other" / "cache").iterdir())


# A directory and a link change places, all the time.
_SWAPS = """
import ctypes
renameat2, here, exchange = ctypes.CDLL(None).renameat2, -100, 2
print("begun", flush=True)
while True:
    renameat2(here, b"work", here, b"turned", exchange)
"""


@CONFINED
def test_no_start_is_led_elsewhere_by_a_directory_that_is_swapped_meanwhile(sandbox: str) -> None:
    with tempfile.TemporaryDirectory(dir="/srv") as directory:
        place = Path(directory)
        for name in ("work", "other"):
            (place / name).mkdir()
        (place / "turned").symlink_to(place / "other")
        for open_to_all in (place, *place.iterdir()):
            os.chmod(open_to_all, 0o777)  # noqa: S103
        isolation = IsolationSettings(writable=(f"{place}/work",), host_for=(_OPERATOR,))
        with fresh_root_side(isolation=isolation) as side:
            link = side.link(subscribe=True)
            swaps = JobSpec(PYTHON[0], (*PYTHON[1:], _SWAPS), workdir=directory, sandbox="host")
            owner = link.ask(messages.StartJob(caller(_OPERATOR), swaps)).record
            link.wait_output(owner.job_id)
            plants = f"for d in . {place}/work {place}/other; do touch $d/planted-$$; done 2>/dev/null; echo done"
            for _ in range(50):
                # Mounts are refused a link; the directory is entered with the job's own rights, whatever it is.
                with contextlib.suppress(HostFault):
                    assert shell(link, plants, sandbox, workdir=f"{place}/work") == "done\n"
            assert link.stop(owner.job_id, force=True).end_reason is EndReason.STOPPED
        assert list((place / "other").iterdir()) == []


@CONFINED
def test_a_device_in_its_directory_is_none(link: Link, sandbox: str) -> None:
    job = link.start(
        "/bin/sh", "-c", "until read go < gate; do sleep 0.01; done 2>/dev/null; head -c 8 zero", sandbox=sandbox
    )
    os.mkfifo(f"{job.workdir}/gate")
    os.chmod(f"{job.workdir}/gate", 0o666)  # noqa: S103
    os.mknod(f"{job.workdir}/zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    Path(job.workdir, "gate").write_text("go\n")
    ended = link.wait_ended(job.job_id)
    assert b"Permission denied" in link.read_log(ended)


# Rights.


@pytest.mark.parametrize("sandbox", [profile.value for profile in Profile])
def test_a_setuid_program_gives_nothing(side: RootSide, sandbox: str) -> None:
    program = shutil.copy("/usr/bin/id", os.path.join(side.settings.isolation.writable[0], "setuid-id"))
    os.chmod(program, 0o4755)  # noqa: S103
    link = side.link(subscribe=True)
    request = messages.StartJob(caller(_OPERATOR), JobSpec(program, ("-u",), sandbox=sandbox))
    ended = link.wait_ended(link.ask(request).record.job_id)
    assert link.read_log(ended) == b"%d\n" % ended.uid


@CONFINED
def test_no_capability_is_there_or_to_be_had(link: Link, sandbox: str) -> None:
    sets = shell(link, "grep ^Cap /proc/self/status", sandbox)
    assert {int(line.split()[1], 16) for line in sets.splitlines()} == {0}


_CALLS = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def told(name, result):
    print(name, "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()])
for flag in (0x80, 0x20000, 0x10000000, 0x40000000, 0x20000000):
    told(f"unshare {flag:#x}", libc.unshare(flag))
told("mount", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
told("umount", libc.umount2(b"/proc", 2))
told("ptrace of init", libc.ptrace(16, 1, 0, 0))
for name, number in {"bpf": 321, "add_key": 248, "keyctl": 250, "userfaultfd": 323, "io_uring_setup": 425,
                     "perf_event_open": 298, "open_by_handle_at": 304, "kexec_load": 246, "clone3": 435,
                     "init_module": 175, "reboot": 169, "fsopen": 430}.items():
    told(name, libc.syscall(number, 0, 0, 0, 0, 0, 0))
for family in (38, 40):
    if libc.socketpair(family, 1, 0, (ctypes.c_int * 2)()) >= 0 or ctypes.get_errno() != errno.EAFNOSUPPORT:
        print("socketpair worked")
for family in (16, 17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_RAW if family != 38 else socket.SOCK_SEQPACKET, 0)
        print("socket", family, "worked")
    except OSError as error:
        print("socket", family, errno.errorcode[error.errno])
"""


@CONFINED
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of calls are those of x86-64")
def test_system_calls_that_reach_into_the_host(link: Link, sandbox: str) -> None:
    said = python(link, _CALLS, sandbox).splitlines()
    answers = dict(line.rsplit(" ", 1) for line in said)
    # Netlink is how programs ask for addresses.
    assert answers.pop("socket 16") == "worked"
    assert answers.pop("clone3") == "ENOSYS"
    assert {answers.pop(f"socket {family}") for family in (17, 38, 40)} == {"EAFNOSUPPORT"}
    assert answers.pop("ptrace of init") in ("EPERM", "ESRCH")
    assert set(answers.values()) == {"EPERM"}
    assert len(answers) == 18


# push rbx; mov eax, socketcall; mov ebx, SYS_SOCKET; mov ecx, arguments; int 0x80; pop rbx; ret
_SOCKETCALL = """
import ctypes, struct, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, 4096, 7, 0x62, -1, 0)
code = b"\\x53\\xb8\\x66\\0\\0\\0\\xbb\\1\\0\\0\\0\\xb9" + struct.pack("<I", page + 64) + b"\\xcd\\x80\\x5b\\xc3"
ctypes.memmove(page, code, len(code))
for family in (1, 2, 38, 40):
    ctypes.memmove(page + 64, struct.pack("<III", family, 1, 0), 12)
    print(ctypes.CFUNCTYPE(ctypes.c_int)(page)())
"""


@CONFINED
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the code is that of x86-64")
def test_a_32_bit_program_gets_no_socket_rather_than_any(link: Link, sandbox: str) -> None:
    bare = subprocess.run([*PYTHON, _SOCKETCALL], capture_output=True, text=True, check=False)
    if bare.returncode or bare.stdout.startswith("-"):
        pytest.skip("this kernel runs no 32-bit programs")
    assert python(link, _SOCKETCALL, sandbox) == f"{-errno.EAFNOSUPPORT}\n" * 4


@CONFINED
def test_programs_of_all_kinds_still_run(link: Link, sandbox: str) -> None:
    script = "import threading, subprocess, socket, multiprocessing as m\n"
    script += "t = threading.Thread(target=print, args=(1,))\n"
    script += (
        "t.start(); t.join(); subprocess.run(['/bin/echo', '2']); print(m.Semaphore(3).get_value(), flush=True)\n"
    )
    script += "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print(4)"
    assert run(link, *PYTHON[:2], "-u", "-c", script, sandbox=sandbox)[1] == "1\n2\n3\n4\n"


# Other processes.


@CONFINED
def test_no_other_process_is_to_be_seen(link: Link, sandbox: str) -> None:
    other = link.start("/bin/sleep", "1000", sandbox=sandbox)
    count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
    assert python(link, count, sandbox) == "1\n"
    look = f"exec 2>/dev/null; cat /proc/{other.pid}/cmdline /proc/{os.getpid()}/cmdline"
    assert shell(link, f"{look}; kill -9 {other.pid}; kill -9 1", sandbox) == ""
    assert link.inspect(other.job_id).ended_ns == 0
    assert link.stop(other.job_id, force=True).end_reason is EndReason.STOPPED


# Of each process that is to be seen, what could be read or changed by way of its files.
_REACH = """
import os
files = {"exe": os.O_WRONLY, "mem": os.O_RDWR, "environ": os.O_RDONLY, "fd": os.O_RDONLY | os.O_DIRECTORY}
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name, flags in files.items():
        try:
            os.close(os.open(f"/proc/{pid}/{name}", flags))
        except OSError:
            continue
        if name == "exe" or int(pid) != os.getpid():
            print(pid, name)
"""


@pytest.mark.parametrize("sandbox", ["standard", "strict", "host"])
def test_memory_files_and_program_of_others_are_out_of_reach(link: Link, sandbox: str) -> None:
    other = link.ask(
        messages.StartJob(caller(_OPERATOR), JobSpec("/bin/sleep", ("1000",), sandbox=sandbox))
    ).record
    spec = JobSpec(PYTHON[0], (*PYTHON[1:], _REACH), sandbox=sandbox)
    looking = link.ask(messages.StartJob(caller(_OPERATOR), spec)).record
    # Its own program is no more to be changed than theirs.
    assert link.read_log(link.wait_ended(looking.job_id)) == b""
    link.stop(other.job_id, force=True)


# Of each process that is named, what could be done to it by its id.
_GET_AT = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
here = ctypes.create_string_buffer(8)
memory = (ctypes.c_void_p * 2)(ctypes.addressof(here), 8)
def fd_of(pid):
    return libc.syscall(438, os.pidfd_open(pid), 0, 0)
ways = {
    "ptrace attach": lambda pid: libc.ptrace(16, pid, None, None),
    "ptrace seize": lambda pid: libc.ptrace(0x4206, pid, None, None),
    "process_vm_readv": lambda pid: libc.process_vm_readv(pid, memory, 1, memory, 1, 0),
    "process_vm_writev": lambda pid: libc.process_vm_writev(pid, memory, 1, memory, 1, 0),
    "pidfd_getfd": fd_of,
    "pidfd_send_signal": lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), 0),
    "kill": lambda pid: os.kill(pid, signal.SIGKILL),
}
for pid in map(int, sys.argv[1:]):
    for name, act in ways.items():
        ctypes.set_errno(0)
        try:
            worked = act(pid) != -1
            number = ctypes.get_errno()
        except OSError as error:
            worked, number = False, error.errno
        if worked or number not in (1, 3):
            print(pid, name, number)
print("all were tried")
"""


@pytest.mark.parametrize("sandbox", [profile.value for profile in Profile])
def test_nothing_is_done_to_another_job_or_the_agent(link: Link, side: RootSide, sandbox: str) -> None:
    other = link.ask(
        messages.StartJob(caller(f"{_OPERATOR}s"), JobSpec("/bin/sleep", ("1000",), sandbox=sandbox))
    ).record
    agent = (side.keeper_pid, side.supervisor_pid(), side.flusher_pid())
    pids = tuple(str(pid) for pid in (other.pid, *agent))
    spec = JobSpec(PYTHON[0], (*PYTHON[1:], _GET_AT, *pids), sandbox=sandbox)
    attacking = link.ask(messages.StartJob(caller(_OPERATOR), spec)).record
    assert link.read_log(link.wait_ended(attacking.job_id)) == b"all were tried\n"
    assert (side.keeper_pid, side.supervisor_pid(), side.flusher_pid()) == agent
    assert link.stop(other.job_id, force=True).end_reason is EndReason.STOPPED


@CONFINED
def test_killing_everyone_kills_its_own_alone(link: Link, sandbox: str) -> None:
    other = link.start("/bin/sleep", "1000", sandbox=sandbox)
    record, _ = run(link, "/bin/sh", "-c", "sleep 1000 & kill -9 -1; echo alive", sandbox=sandbox)
    assert link.inspect(other.job_id).ended_ns == 0
    assert link.stop(other.job_id, force=True).end_reason is EndReason.STOPPED
    assert cgroups(record.job_id) == []


@CONFINED
def test_shared_memory_and_names_are_its_own(link: Link, sandbox: str) -> None:
    made = subprocess.run(["ipcmk", "-M", "4096", "-p", "0666"], capture_output=True, check=True).stdout.split()[
        -1
    ]
    try:
        assert shell(link, "ipcs -m | grep -c 0x", sandbox) == "0\n"
    finally:
        subprocess.run(["ipcrm", "-m", made], check=True)
    spaces = {shell(link, f"readlink /proc/self/ns/{kind}", sandbox) for kind in ("ipc", "uts", "cgroup", "mnt")}
    own = {os.readlink(f"/proc/self/ns/{kind}") + "\n" for kind in ("ipc", "uts", "cgroup", "mnt")}
    assert len(spaces - own) == 4


@CONFINED
def test_its_cgroup_looks_like_the_root_and_cannot_be_left(link: Link, sandbox: str) -> None:
    said = shell(link, "cut -d: -f3 /proc/self/cgroup | sort -u; grep -c cgroup /proc/mounts", sandbox)
    assert said.split()[0] == "/"
    files = "find /sys/fs/cgroup -name cgroup.procs -o -name tasks"
    assert shell(link, f"(for f in $({files}); do echo 0 > $f && echo $f; done) 2>/dev/null", sandbox) == ""


@CONFINED
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of calls are those of x86-64")
def test_it_leaves_no_child_to_the_agent(link: Link, sandbox: str) -> None:
    # A sibling would be the supervisor's child.
    script = "import ctypes; print(ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0))"
    assert python(link, script, sandbox) == "-1\n"


@CONFINED
def test_one_that_is_traced_by_its_parent_ends_as_it_should(link: Link, side: RootSide, sandbox: str) -> None:
    """The keeper, its parent after the supervisor's death, is told that it stops, and that is no end."""
    script = (
        f"import ctypes, os; print(1, flush=True); open({gate(side, sandbox)!r}).read(); "
        "ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 10)"
    )
    traced = side.link(subscribe=True).start(*PYTHON, script, sandbox=sandbox)
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    link = side.reconnect(subscribe=True)
    open_gate(side, sandbox)
    until(lambda: Path(f"/proc/{traced.pid}/status").read_text().split("State:\t")[1][0], "t")
    ended = link.stop(traced.job_id, force=True)
    assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGKILL)


_ON_SHARED_MOUNTS = """
import sys, tempfile, os
sys.path.insert(0, {tests!r})
from jobworker.settings.schema import IsolationSettings
from support.root_side import root_side

def mounts():
    with open("/proc/self/mountinfo") as file:
        return len(file.readlines())

with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir="/var/lib") as directory:
    os.chmod(directory, 0o755)
    os.makedirs(directory + "/a/b")
    os.symlink(directory + "/a", directory + "/link")
    before = mounts()
    isolation = IsolationSettings(writable=(directory + "/link", directory + "/a/b"))
    with root_side(directory, isolation=isolation) as side:
        link = side.link(subscribe=True)
        for sandbox in ("standard", "strict"):
            job = link.start("/bin/sh", "-c", "grep -c shared: /proc/self/mountinfo", sandbox=sandbox)
            assert link.read_log(link.wait_ended(job.job_id)) == b"0\\n"
        assert mounts() == before, (before, mounts())
print("done")
"""


def test_no_mount_of_a_job_reaches_the_host_where_mounts_are_shared() -> None:
    """As service managers have them."""
    script = _ON_SHARED_MOUNTS.format(tests=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


# Which profile.


def test_a_job_says_what_it_is_isolated_by(link: Link) -> None:
    for profile in (Profile.STANDARD, Profile.STRICT):
        applied = link.start("/bin/true", sandbox=profile.value).sandbox
        assert applied.profile == profile.value
        assert applied.parts == tuple(part.value for part in PARTS[profile])
        assert applied.missing == ()
    assert link.start("/bin/true").sandbox.profile == "standard"


def test_a_profile_that_is_none(link: Link) -> None:
    with pytest.raises(InvalidField, match="sandbox: 'lax' is not one of host, standard, strict"):
        link.ask(messages.StartJob(caller("p"), JobSpec("/bin/true", sandbox="lax")))


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        isolation = IsolationSettings(writable=(directory,), host_for=("spiffe://test/user/oper*",))
        with root_side(directory, isolation=isolation) as running:
            yield running


def test_the_host_profile_is_for_those_who_are_named(link: Link) -> None:
    spec = JobSpec("/usr/bin/readlink", ("/proc/self/ns/mnt",), sandbox="host")
    with pytest.raises(PolicyDenied, match=r"isolation\.host_for names"):
        link.ask(messages.StartJob(caller("spiffe://test/user/other"), spec))
    job = link.ask(messages.StartJob(caller(_OPERATOR), spec)).record
    assert link.read_log(link.wait_ended(job.job_id)).decode().strip() == os.readlink("/proc/self/ns/mnt")
    assert job.sandbox.parts == (Part.NO_NEW_PRIVILEGES.value,)


@pytest.mark.parametrize("missing", ["refuse", "report"])
def test_a_kernel_that_lacks_a_part(missing: str) -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        isolation = IsolationSettings(missing=missing, writable=(directory,), host_for=("*",))
        with root_side(directory, isolation=isolation, without_call=_NR_MOUNT_SETATTR) as side:
            link = side.link(subscribe=True)
            reasons = {each.part: each.reason for each in link.welcome.host.isolation if each.reason}
            assert set(reasons) == {Part.READ_ONLY_SYSTEM, Part.PRIVATE_TMP, Part.OWN_PROCESSES}
            assert "ENOSYS" in reasons[Part.READ_ONLY_SYSTEM]
            assert link.start("/bin/true", sandbox="host").sandbox.missing == ()
            if missing == "refuse":
                with pytest.raises(SandboxUnsupported, match=r"lacks read-only-system: .*ENOSYS"):
                    link.start("/bin/true")
            else:
                job = link.start("/bin/sh", "-c", "grep Seccomp: /proc/self/status")
                assert set(job.sandbox.missing) == {part.value for part in reasons}
                assert link.read_log(link.wait_ended(job.job_id)) == b"Seccomp:\t2\n"


def test_a_writable_directory_that_is_none_is_told_and_left_out() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        isolation = IsolationSettings(writable=(f"{directory}/missing",))
        with root_side(directory, isolation=isolation) as side:
            assert "isolation.writable names what is no directory" in side.log()
            assert side.link().start("/bin/true").sandbox.profile == "standard"


def test_a_namespace_of_its_own_needs_room_for_its_init(link: Link) -> None:
    with pytest.raises(InvalidField, match=r"limits.pids: leave no room: the profile strict"):
        link.start("/bin/true", sandbox="strict", limits=Limits(pids=1))
    assert run(link, "/bin/true", sandbox="strict", limits=Limits(pids=2))[0].exit_code == 0
    assert run(link, "/bin/true", sandbox="standard", limits=Limits(pids=1))[0].exit_code == 0

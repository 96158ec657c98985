"""Profiles of limits: what a job gets by a name, by default and at the most, and the file as it changes."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import CapExceeded, InvalidField, PolicyDenied
from jobworker.jobs import Idempotency, JobRecord, JobSpec
from jobworker.limits import Enforcement, Limits
from jobworker.wire import messages
from support.callers import caller
from support.limit_files import kernel_limits
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.waiting import until

pytestmark = pytest.mark.root

FILE = """\
version: 1
default: small
caps: {cpu: 100%, memory: 512M, pids: 2000}
profiles:
  small: {memory: 64M, pids: 32}
  build: {cpu: 50%, memory: 128M, swap: 16M}
"""
OTHER = "version: 1\nprofiles: {tiny: {pids: 7}}\n"
BAD = "version: 1\nprofiles:\n  small: {memory: 64M, pid: 32}\n"
SAID = "line 3: profiles.small.pid: is not a limit; for example pids"
# A principal that a rule holds to less.
HELD = "spiffe://test/user/held"
POLICY = f"""\
version: 1
rules:
  - {{name: held, allow: [Start], principals: [{HELD}], limits: {{memory: 100M, pids: {{required: true}}}}}}
  - {{name: rest, allow: all}}
"""


@pytest.fixture
def own_side() -> Iterator[RootSide]:
    with fresh_root_side(limits=FILE, policy=POLICY) as running:
        yield running


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    """Of those tests that leave the file alone."""
    with fresh_root_side(limits=FILE, policy=POLICY) as running:
        yield running


def held_to(link: Link, **spec: Any) -> dict[str, str]:
    """What a job with this specification is held to, by the record and by the kernel; it is stopped then."""
    job = link.start("/bin/sleep", "1000", **spec)
    told = {status.name: status.value for status in job.limits}
    assert kernel_limits(job) == {name: value for name, value in told.items() if name in ("memory", "cpu", "pids")}
    link.stop(job.job_id, force=True)
    return told


def profiles_of(link: Link) -> list[str]:
    host = link.ask(messages.ReadLimits()).host
    return [profile.name for profile in host.profiles.profiles]


# What a job gets.


def test_a_profile_gives_what_is_not_asked_for(link: Link) -> None:
    build = {"cpu": "50%", "memory": "128M", "swap": "16M", "pids": "1024"}
    if "swap" in unsupported(link):
        build["swap"] = ""
    assert held_to(link, profile="build", best_effort=True) == build
    asked = Limits(cpu_millis=700, pids=9)
    assert held_to(link, profile="build", limits=asked, best_effort=True) == build | {"cpu": "70%", "pids": "9"}


def unsupported(link: Link) -> set[str]:
    return {each.name for each in link.welcome.host.limits if each.enforcement is Enforcement.UNSUPPORTED}


def test_swap_comes_from_where_the_memory_does(link: Link) -> None:
    told = held_to(link, profile="build", limits=Limits(memory_bytes=32 << 20))
    assert told == {"cpu": "50%", "memory": "32M", "pids": "1024"}


def test_without_a_name_there_is_the_default_profile(link: Link) -> None:
    """And behind it the caps, for what it does not speak of."""
    job = link.start("/bin/true")
    assert job.profile == "small"
    assert held_to(link) == {"cpu": "100%", "memory": "64M", "pids": "32"}
    assert held_to(link, limits=Limits(pids=50)) == {"cpu": "100%", "memory": "64M", "pids": "50"}


def test_another_profile_is_not_mixed_with_the_default_one(link: Link) -> None:
    job = link.start("/bin/true", profile="build", best_effort=True)
    assert job.profile == "build"
    assert {status.name: status.requested for status in job.limits}["pids"] == "1024"


def test_a_profile_that_is_not_there(link: Link) -> None:
    with pytest.raises(
        InvalidField, match="'huge' is not a profile of limits of this agent; there are small, build"
    ):
        link.start("/bin/true", profile="huge")
    with pytest.raises(InvalidField, match="not made of up to 63"):
        link.start("/bin/true", profile="../x")


def test_nobody_gets_more_than_the_caps(link: Link) -> None:
    with pytest.raises(InvalidField, match=r"limits\.memory: 1G is more than the caps .* allow; for example 512M"):
        link.start("/bin/true", limits=Limits(memory_bytes=1 << 30))
    told = {limit.name: (limit.default, limit.maximum) for limit in link.welcome.host.limits}
    assert (told["memory"], told["pids"], told["cpu"]) == (("64M", "512M"), ("32", "2000"), ("100%", "100%"))


def test_the_policy_bounds_what_a_profile_gives(link: Link) -> None:
    def start(**spec: Any) -> JobRecord:
        request = messages.StartJob(caller(HELD), JobSpec("/bin/true", **spec))
        record: JobRecord = link.ask(request).record
        return record

    with pytest.raises(PolicyDenied, match=r"limits\.memory is 128M, more than 100M"):
        start(profile="build", limits=Limits(pids=5))
    # A profile that is named is asked for; one that comes by default is not.
    with pytest.raises(PolicyDenied, match=r"limits\.pids has to be asked for"):
        start()
    with pytest.raises(PolicyDenied, match=r"limits\.pids has to be asked for"):
        start(profile="build", limits=Limits(memory_bytes=1 << 20))
    told = {status.name: status.value for status in start(profile="small").limits}
    assert (told["memory"], told["pids"]) == ("64M", "32")
    # The rule's maximum comes before the default profile.
    told = {status.name: status.value for status in start(limits=Limits(pids=5)).limits}
    assert (told["memory"], told["pids"]) == ("100M", "5")


def test_room_is_needed_for_what_a_profile_gives() -> None:
    with fresh_root_side(limits=FILE, max_jobs_memory_bytes=130 << 20) as running:
        link = running.link(subscribe=True)
        job = link.start("/bin/sleep", "1000", profile="small")
        with pytest.raises(CapExceeded):
            link.start("/bin/true", profile="build", best_effort=True)
        link.stop(job.job_id, force=True)
        assert link.start("/bin/true", profile="build", best_effort=True).profile == "build"


# The file.


def test_a_change_holds_for_the_next_start(own_side: RootSide) -> None:
    link, watching = own_side.link(subscribe=True), own_side.link(subscribe=True)
    before = link.start("/bin/sleep", "1000")
    own_side.write_limits(OTHER)
    assert held_to(link, profile="tiny") == {"pids": "7"}
    assert link.inspect(before.job_id).limits == before.limits
    assert kernel_limits(before)["memory"] == "64M"
    # Who is connected is told of it.
    while not isinstance(event := watching.receive().message, messages.HostIs):
        pass
    assert [profile.name for profile in event.host.profiles.profiles] == ["tiny"]
    assert profiles_of(link) == ["tiny"]


def test_starts_that_come_at_once_are_all_answered_by_the_new_file(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    own_side.write_limits(OTHER)
    asked = {link.send(messages.StartJob(CALLER, JobSpec("/bin/true", profile="tiny"))) for _ in range(10)}
    # Which of them is launched first is nobody's promise.
    while asked:
        if (frame := link.receive()).seq in asked:
            assert frame.message.record.profile == "tiny", frame.message
            asked.remove(frame.seq)
    with pytest.raises(InvalidField, match="there are tiny"):
        link.start("/bin/true", profile="small")


def test_a_change_is_read_on_sighup(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    own_side.write_limits(OTHER)
    os.kill(own_side.supervisor_pid(), signal.SIGHUP)
    while not isinstance(event := link.receive().message, messages.HostIs):
        pass
    assert [profile.name for profile in event.host.profiles.profiles] == ["tiny"]


def test_a_bad_file_changes_nothing_and_is_explained(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    own_side.write_limits(BAD)
    host = link.ask(messages.ReadLimits()).host
    assert [profile.name for profile in host.profiles.profiles] == ["small", "build"]
    assert SAID in host.limits_problem
    assert SAID in own_side.log()
    assert held_to(link)["memory"] == "64M"
    own_side.write_limits(OTHER)
    assert link.ask(messages.ReadLimits()).host.limits_problem == ""


@pytest.mark.parametrize("kill", ["supervisor", "agent"])
def test_no_crash_brings_back_what_was_good_before(own_side: RootSide, kill: str) -> None:
    link = own_side.link()
    own_side.write_limits(OTHER)
    assert profiles_of(link) == ["tiny"]
    own_side.write_limits(BAD)
    if kill == "supervisor":
        os.kill(own_side.supervisor_pid(), signal.SIGKILL)
    else:
        own_side.restart()
    host = own_side.reconnect().welcome.host
    assert [profile.name for profile in host.profiles.profiles] == ["tiny"]
    assert SAID in host.limits_problem
    status = os.stat(f"{own_side.state_dir}/limits.json")
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)


def test_a_file_that_others_can_write_is_not_used(own_side: RootSide) -> None:
    own_side.write_limits(OTHER)
    os.chmod(own_side.settings.limits, 0o666)  # noqa: S103
    host = own_side.link().ask(messages.ReadLimits()).host
    assert "can be written by others, who could decide with it what jobs may use" in host.limits_problem
    assert len(host.profiles.profiles) == 2


def test_without_any_file_that_is_good_no_agent_starts() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with pytest.raises(RuntimeError, match=r"line 3: profiles\.small\.pid"), root_side(directory, limits=BAD):
            pass


def test_a_file_that_the_host_keeps_from_being_read_is_read_later(own_side: RootSide) -> None:
    link, watching = own_side.link(), own_side.link(subscribe=True)
    supervisor = own_side.supervisor_pid()
    before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    # Nothing more can be opened, and no process have its pipes.
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, before[1]))
    own_side.write_limits(OTHER)
    assert "EMFILE" in link.ask(messages.ReadLimits()).host.limits_problem
    assert "EMFILE" in link.ask(messages.ReadLimits()).host.limits_problem
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
    while not isinstance(event := watching.receive().message, messages.HostIs) or event.host.limits_problem:
        pass
    assert [profile.name for profile in event.host.profiles.profiles] == ["tiny"]
    assert own_side.log().count("what was good stays in force") == 1


def test_a_file_that_is_not_read_in_time_is_read_later(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    fast = tmp_path / "fast"
    with root_side(str(tmp_path), own_package=True, limits=FILE) as side:
        path = Path(side.package, "supervisor/last_good.py")
        patience = f"reading.PATIENCE if __import__('os').path.exists({str(fast)!r}) else 0.01"
        path.write_text(path.read_text().replace("(reading.PATIENCE, ", f"({patience}, "))
        link = side.kill_supervisor(side.link(), subscribe=False)
        side.write_limits(OTHER)
        host = link.ask(messages.ReadLimits()).host
        assert "ETIMEDOUT" in host.limits_problem
        assert [profile.name for profile in host.profiles.profiles] == ["small", "build"]
        fast.touch()
        # Who asks has it read.
        assert profiles_of(link) == ["tiny"]


def test_a_repeated_start_gets_its_job_whatever_has_become_of_its_profile(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    request = messages.StartJob(
        CALLER, JobSpec("/bin/true", profile="build", best_effort=True), Idempotency("k", "d")
    )
    first = link.ask(request).record
    own_side.write_limits(OTHER)
    assert link.ask(request).record.job_id == first.job_id
    until(lambda: link.inspect(first.job_id).profile, "build")

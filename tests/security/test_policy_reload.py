"""The policy file as it changes: what is good is in force with the next call, and what is bad changes nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import InvalidField, PolicyDenied
from jobworker.jobs import JobSpec
from jobworker.policy import Policy
from jobworker.supervisor import policies, reading
from jobworker.wire import messages
from support.callers import caller
from support.link import Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.waiting import until

pytestmark = pytest.mark.root

OPEN = "version: 1\nrules: [{name: all, allow: all}]\n"
SHUT = "version: 1\nrules: [{name: shut, deny: all}]\n"
BAD = "version: 1\nrules:\n- name: all\n  alow: all\n"
SAID = "line 4: rules[0].alow: is not known here"


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side(policy=OPEN) as running:
        yield running


def refused(link: Link) -> bool:
    try:
        link.ask(messages.StartJob(caller(), JobSpec("/bin/true")))
    except PolicyDenied:
        return True
    return False


def names(policy: Policy) -> list[str]:
    return [rule.name for rule in policy.rules]


def told(side: RootSide) -> messages.PolicyIs:
    """What the supervisor has now; without a look at the file."""
    link = side.link()
    link.close()
    welcome: messages.Welcome = link.welcome
    return welcome.policy


def test_a_change_is_in_force_once_it_was_asked_for(side: RootSide) -> None:
    link = side.link(subscribe=True)
    assert names(link.welcome.policy.policy) == ["all"]
    assert not refused(link)
    side.write_policy(SHUT)
    assert names(link.ask(messages.ReadPolicy()).policy) == ["shut"]
    assert refused(link)
    # Who is connected is told of it.
    events = [event for event in link.events if isinstance(event, messages.PolicyIs)]
    assert [names(event.policy) for event in events] in ([], [["shut"]])
    side.write_policy(OPEN)
    assert names(link.ask(messages.ReadPolicy()).policy) == ["all"]
    assert not refused(link)


def test_a_change_is_found_by_a_start(side: RootSide) -> None:
    """Of whoever does not ask for it."""
    link = side.link()
    side.write_policy(SHUT)
    until(lambda: refused(link), True)


def test_a_change_is_read_on_sighup(side: RootSide) -> None:
    side.write_policy(SHUT)
    os.kill(side.supervisor_pid(), signal.SIGHUP)
    until(lambda: names(told(side).policy), ["shut"])


def test_those_who_subscribe_are_told(side: RootSide) -> None:
    link = side.link(subscribe=True)
    side.write_policy(SHUT)
    os.kill(side.supervisor_pid(), signal.SIGHUP)
    while not isinstance(event := link.receive().message, messages.PolicyIs):
        pass
    assert names(event.policy) == ["shut"]


def test_a_bad_file_changes_nothing_and_is_explained(side: RootSide) -> None:
    link = side.link()
    side.write_policy(BAD)
    answer = link.ask(messages.ReadPolicy())
    assert names(answer.policy) == ["all"]
    assert SAID in answer.problem
    assert SAID in side.log()
    assert not refused(link)
    side.write_policy(SHUT)
    assert link.ask(messages.ReadPolicy()).problem == ""
    assert refused(link)


@pytest.mark.parametrize("kill", ["supervisor", "agent"])
def test_no_crash_brings_back_what_was_good_before(side: RootSide, kill: str) -> None:
    link = side.link()
    side.write_policy(SHUT)
    assert names(link.ask(messages.ReadPolicy()).policy) == ["shut"]
    side.write_policy(BAD)
    if kill == "supervisor":
        os.kill(side.supervisor_pid(), signal.SIGKILL)
    else:
        side.restart()
    back = side.reconnect()
    assert names(back.welcome.policy.policy) == ["shut"]
    assert SAID in back.welcome.policy.problem
    assert refused(back)


def test_what_has_changed_while_nobody_looked_is_in_force_at_once(side: RootSide) -> None:
    side.close()
    side.write_policy(SHUT)
    side.start_again()
    assert refused(side.link())


def test_a_kept_policy_that_is_broken_is_read_anew(side: RootSide) -> None:
    side.close()
    with open(f"{side.state_dir}/policy.json", "r+b") as kept:
        kept.write(b"\xff")
    side.start_again()
    assert not refused(side.link())
    assert "the kept policy cannot be read" in side.log()


def test_the_kept_policy_is_roots(side: RootSide) -> None:
    status = os.stat(f"{side.state_dir}/policy.json")
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)


def test_without_any_policy_that_is_good_no_agent_starts() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with pytest.raises(RuntimeError, match="line 4: rules"), root_side(directory, policy=BAD):
            pass


def replace_by_directory(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def replace_by_fifo(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: os.chmod(path, 0o666), "can be written by others"),  # noqa: S103
        (lambda path: os.chmod(path, 0o664), "can be written by others"),
        (lambda path: os.chown(path, 65534, 0), "belongs to the user 65534, who could decide with it who may"),
        (os.unlink, "No such file"),
        (replace_by_directory, "is not a file"),
        (replace_by_fifo, "is not a file"),
        (lambda path: os.truncate(path, 200_000), "is larger than"),
        (lambda path: os.truncate(path, 0), "is empty"),
    ],
    ids=["mode", "group", "owner", "missing", "directory", "fifo", "large", "empty"],
)
def test_a_file_that_is_not_to_be_used(side: RootSide, spoil: object, said: str) -> None:
    assert callable(spoil)
    side.write_policy(SHUT)
    spoil(side.settings.policy)
    answer = side.link().ask(messages.ReadPolicy())
    assert names(answer.policy) == ["all"]
    assert said in answer.problem


@pytest.mark.parametrize("linked", [False, True], ids=["beside", "behind a link"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: os.chmod(path, 0o777), "can be written by others"),  # noqa: S103
        (lambda path: os.chown(path, 65534, 0), "belongs to the user 65534"),
    ],
    ids=["mode", "owner"],
)
def test_a_directory_that_others_put_files_into(tmp_path: Path, spoil: object, said: str, linked: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    assert callable(spoil)
    directory = tmp_path / "policies"
    directory.mkdir()
    policy = directory / "policy.yaml"
    policy.write_text(SHUT)
    path = tmp_path / "link.yaml" if linked else policy
    if linked:
        path.symlink_to(policy)
    assert names(reading.read(policies.SOURCE, str(path))[0]) == ["shut"]
    # As a directory for all to write is, where each can move his own alone.
    os.chmod(directory, 0o1777)  # noqa: S103
    assert names(reading.read(policies.SOURCE, str(path))[0]) == ["shut"]
    spoil(directory)
    with pytest.raises(InvalidField, match=f"its directory {directory} {said}, who could decide who may do what"):
        reading.read(policies.SOURCE, str(path))


def test_what_was_said_at_the_end_is_read_whatever_the_descriptors_number(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(SHUT)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as taken:
        for _ in range(1100):
            taken.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        process = reading.Reading(policies.SOURCE, str(path))
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
        assert names(process.result()[0]) == ["shut"]


def test_many_changes_make_one_process_at_a_time(side: RootSide) -> None:
    """And all who have asked are answered by what is there in the end."""
    link = side.link()
    asked, supervisor = [], side.supervisor_pid()
    # Else it might keep up with us.
    os.kill(supervisor, signal.SIGSTOP)
    for i in range(20):
        side.write_policy(SHUT if i % 2 else OPEN)
        asked.append(link.send(messages.ReadPolicy()))
    os.kill(supervisor, signal.SIGCONT)
    answers = [link.answer(seq).message for seq in asked]
    assert names(answers[-1].policy) == ["shut"]
    assert side.log().count("policy read") < 10
    assert refused(link)

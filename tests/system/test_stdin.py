"""What a job reads: all of what came with its start, and the end behind it."""

from __future__ import annotations

import os
import signal

import pytest

from jobworker.errors import InvalidField, StartFailed
from jobworker.jobs import MAX_STDIN_BYTES, Idempotency, JobSpec
from jobworker.wire import messages
from support.callers import caller
from support.link import Link
from support.root_side import RootSide

pytestmark = pytest.mark.root


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_it_is_what_was_given_and_ends(link: Link, sandbox: str) -> None:
    given = os.urandom(MAX_STDIN_BYTES)
    record = link.wait_ended(link.start("/bin/cat", stdin=given, sandbox=sandbox).job_id)
    assert link.read_log(record) == given


def test_it_can_be_opened_by_name(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "test -p /dev/stdin && cat /dev/stdin", stdin=b"in\n")
    assert link.read_log(link.wait_ended(record.job_id)) == b"in\n"


def test_it_is_there_after_the_death_of_the_supervisor(side: RootSide, link: Link) -> None:
    script = "read line; echo $line; read go < go; cat"
    record = link.start("/bin/sh", "-c", f"mkfifo go; {script}", stdin=b"first\nsecond\n")
    side.wait_for(lambda: os.path.exists(os.path.join(record.workdir, "go")))
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    again = side.reconnect(subscribe=True)
    with open(os.path.join(record.workdir, "go"), "w") as go:
        go.write("go\n")
    assert again.read_log(again.wait_ended(record.job_id)) == b"first\nsecond\n"


def test_nothing_is_kept_of_it(side: RootSide, link: Link) -> None:
    spec = JobSpec("/bin/true", stdin=b"a secret")
    record = link.ask(messages.StartJob(caller("p1"), spec, Idempotency("key", "digest"))).record
    link.wait_ended(record.job_id)
    directory = os.path.join(side.state_dir, "jobs", record.job_id)
    for path, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                assert b"secret" not in file.read()


def test_no_descriptor_is_left_of_it(side: RootSide, link: Link) -> None:
    def start_both() -> None:
        with pytest.raises(StartFailed):
            link.start("/no/such/program", stdin=b"x")
        link.wait_ended(link.start("/bin/true", stdin=b"x").job_id)

    start_both()
    before = side.open_files(link)
    for _ in range(5):
        start_both()
    assert side.open_files(link) == before


def test_it_has_a_bound(link: Link) -> None:
    with pytest.raises(InvalidField, match=f"stdin.*{MAX_STDIN_BYTES}"):
        link.start("/bin/cat", stdin=bytes(MAX_STDIN_BYTES + 1))

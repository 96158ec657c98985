"""What a process with the gateway's user id can do to root by its socket: nothing beyond its own connection."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from jobworker.errors import HostFault, InvalidField, JobWorkerError, PermissionDenied
from jobworker.jobs import MAX_PRINCIPAL, JobSpec
from jobworker.wire import messages
from support.callers import caller
from support.leased import leased
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side
from support.trails import events

pytestmark = pytest.mark.root

GATEWAY = 12345
# Answers to one peer before it has read some, the descriptors of all of them together, which come by twos, and
# requests without one.
UNREAD, UNREAD_FDS, UNANSWERED = 512, 64, 2_048
# Of one kind of peer.
CONNECTIONS = 32
# As many of those can be one principal's.
ONES = 256


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side(gateway_uid=GATEWAY) as running:
        Path(running.state_dir).parent.chmod(0o755)
        yield running


def send_all_that_is_taken(bad: Link, other: Link, requests: Iterable[object]) -> int:
    """Send without reading; how many requests were taken."""
    sent = 0
    for request in requests:
        if bad.offer(request) is None:
            # Whatever could be read has been once another one is answered twice.
            for _ in range(2):
                other.ask(messages.Measure())
            if bad.offer(request) is None:
                return sent
        sent += 1
    return sent


def drains(count: int) -> Iterator[messages.Drain]:
    """By as many principals as it takes."""
    return (messages.Drain(caller(f"spiffe://test/user/{n // ONES}"), draining=True) for n in range(count))


def test_who_does_not_read_is_not_listened_to(side: RootSide) -> None:
    link, bad = side.link(subscribe=True), side.link()
    record = link.wait_ended(link.start("/bin/echo", "hi").job_id)
    before = side.open_files(link)
    requests = itertools.repeat(messages.OpenLog(record.job_id, 0), 4 * UNREAD)
    taken = send_all_that_is_taken(bad, link, requests)
    assert taken < 4 * UNREAD
    assert side.open_files(link) <= before + UNREAD_FDS
    # They are all answered once it reads.
    for _ in range(taken):
        bad.receive().fds.close()
    assert bad.inspect(record.job_id) == record
    bad.close()
    side.wait_for(lambda: side.open_files(link) < before)


def test_who_takes_every_connection_does_not_lock_the_owner_out(side: RootSide) -> None:
    for _ in range(CONNECTIONS):
        side.link()
    with pytest.raises(ConnectionError):
        side.link()
    # It has come, and is welcome.
    Link(side.settings.socket_path).close()


def test_who_does_not_read_large_answers_is_not_listened_to(side: RootSide) -> None:
    link, bad = side.link(subscribe=True), side.link()
    record = link.wait_ended(link.start("/bin/true", "x" * 120_000, "x" * 120_000).job_id)
    before = resident(side)
    asked = messages.InspectJob(record.job_id)
    taken = send_all_that_is_taken(bad, link, itertools.repeat(asked, 4 * UNREAD))
    assert resident(side) - before < UNREAD * 240_000 // 4
    assert [bad.receive().message.record for _ in range(taken)] == [record] * taken
    # It is listened to again.
    assert bad.inspect(record.job_id) == record


def resident(side: RootSide) -> int:
    """The bytes of memory that the supervisor has."""
    pages = Path(f"/proc/{side.supervisor_pid()}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_who_goes_with_requests_in_flight_is_gone(side: RootSide) -> None:
    link, other = side.link(), side.link()
    with leased(str(Path(side.state_dir).parent / "true"), "/bin/true") as program:
        starting = link.send(messages.StartJob(CALLER, JobSpec(program.path)))
        program.wait_until_asked()
        before = side.open_files(other)
        bad = side.link()
        # They are answered once no job is being started any more.
        for request in drains(UNANSWERED):
            bad.send(request)
        # All of them have been read.
        assert send_all_that_is_taken(bad, other, drains(UNANSWERED)) < UNANSWERED
        bad.close()
        side.wait_for(lambda: side.open_files(other) <= before)
    # A slow machine has come to give it up meanwhile.
    with suppress(HostFault):
        assert link.answer(starting).message.record.job_id


def test_the_agent_does_not_end_with_a_gateway_that_attended(side: RootSide) -> None:
    link = side.link()
    with pytest.raises(PermissionDenied, match="Control"):
        link.ask(messages.Control(attend=True))
    link.close()
    side.link().ask(messages.Measure())


def test_a_principal_that_no_record_has_room_for_starts_nothing(side: RootSide) -> None:
    link = side.link()
    large = JobSpec("/bin/sh", ("-c", "sleep 1000", "x" * 130_000, "y" * 125_000))
    with pytest.raises(InvalidField, match=r"caller.principal"):
        link.ask(messages.StartJob(replace(CALLER, principal="p" * (MAX_PRINCIPAL + 1)), large))
    longest = replace(CALLER, principal="\N{GRINNING FACE}" * MAX_PRINCIPAL)
    record = link.ask(messages.StartJob(longest, large)).record
    # Whoever subscribes is told of all jobs.
    link = side.kill_supervisor(link)
    assert link.inspect(record.job_id).principal == longest.principal
    link.stop(record.job_id, force=True)


# UTF-8 has no such character, and no bytes of a host's stand for it.
LONE = "\ud800" * 4_000
UNTOLD = (
    JobSpec(LONE),
    JobSpec("/bin/true", (LONE,)),
    JobSpec("/bin/true", ("\udcff", LONE)),
    JobSpec("/bin/true", env=((LONE, "x"),)),
    JobSpec("/bin/true", env=(("X", LONE),)),
    JobSpec("/bin/true", workdir=f"/{LONE}"),
    JobSpec("/bin/true", labels=(("x", LONE),)),
    JobSpec("/bin/true", sandbox=LONE),
    JobSpec("/bin/true", profile=LONE),
    JobSpec("/bin/true", user=LONE),
)


def test_text_that_cannot_be_encoded_is_refused(side: RootSide) -> None:
    link, pid = side.link(), side.supervisor_pid()
    for spec in UNTOLD:
        with pytest.raises(JobWorkerError):
            link.ask(messages.StartJob(CALLER, spec))
    assert side.supervisor_pid() == pid
    refused = [line for line in events(side.state_dir, "calls") if line["event"] == "start_refused"]
    assert len(refused) == len(UNTOLD)
    assert refused[1]["args_cut"]["of"] == 1


def memory_peak(pid: int) -> int:
    """In bytes (proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_where_a_command_may_be_costs_root_nothing(side: RootSide) -> None:
    link, pid = side.link(), side.supervisor_pid()
    before = memory_peak(pid)
    size = 12_000
    with pytest.raises(Exception, match="x" * 100):
        link.start("x" * size, env=(("PATH", ":" * size),))
    # All places together are more than a hundred MiB.
    assert memory_peak(pid) < before + (32 << 20)

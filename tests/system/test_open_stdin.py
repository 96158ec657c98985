"""A standard input that stays open: every byte that was taken is read, in its order, whoever dies on the way."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from jobworker.errors import InvalidField, JobNotFound, StdinEnded, StdinOffset, StdinTooLarge
from jobworker.jobs import MAX_STDIN_BYTES, State
from jobworker.wire import messages
from support.link import CALLER, Link
from support.root_side import RootSide, root_side
from support.trails import events
from support.waiting import until

pytestmark = pytest.mark.root

# What a pipe and the supervisor's window hold together.
MOST_HELD = 128 * 1024


def pattern(size: int) -> bytes:
    """Bytes of which no two places look alike."""
    return b"".join(n.to_bytes(8, "big") for n in range(-(-size // 8)))[:size]


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
@pytest.mark.parametrize("size", [0, 1, 4096, MAX_STDIN_BYTES, 3 * 1024 * 1024 + 17])
def test_all_of_it_arrives_and_ends(link: Link, sandbox: str, size: int) -> None:
    data = pattern(size)
    record = link.start("/usr/bin/sha256sum", stdin_open=True, sandbox=sandbox)
    assert record.stdin_open
    link.feed(record.job_id, data, end=True)
    ended = link.wait_ended(record.job_id)
    assert link.read_log(ended) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()
    assert (ended.exit_code, ended.stdin_open, ended.stdin_bytes) == (0, False, size)


def test_what_comes_with_the_start_is_its_beginning(link: Link) -> None:
    record = link.start("/bin/cat", stdin=b"first, ", stdin_open=True)
    assert link.write_stdin(record.job_id).taken == 7
    link.feed(record.job_id, b"then", offset=7, end=True)
    assert link.read_log(link.wait_ended(record.job_id)) == b"first, then"


def test_it_is_read_as_it_comes(link: Link) -> None:
    record = link.start("/bin/sh", "-c", 'read line; echo "got $line"; cat', stdin_open=True)
    link.write_stdin(record.job_id, b"one\n")
    link.wait_output(record.job_id)
    link.write_stdin(record.job_id, b"two\n", end=True)
    assert link.read_log(link.wait_ended(record.job_id)) == b"got one\ntwo\n"


def test_small_pieces_and_many(link: Link) -> None:
    record = link.start("/usr/bin/wc", "-l", stdin_open=True)
    for n in range(300):
        link.feed(record.job_id, b"x\n", offset=2 * n)
    link.write_stdin(record.job_id, end=True)
    assert link.read_log(link.wait_ended(record.job_id)) == b"300\n"


def test_a_job_that_does_not_read_holds_up_nobody(link: Link) -> None:
    record = link.start("/bin/sleep", "1000", stdin_open=True)
    taken, whole = 0, True
    while whole:
        answer = link.write_stdin(record.job_id, bytes(MAX_STDIN_BYTES), offset=taken)
        taken, whole = answer.taken, answer.whole
    assert taken <= MOST_HELD
    for _ in range(50):
        assert link.write_stdin(record.job_id, bytes(MAX_STDIN_BYTES)).taken == taken
    assert link.inspect(record.job_id).stdin_bytes == taken
    other = link.wait_ended(link.start("/bin/echo", "here").job_id)
    assert link.read_log(other) == b"here\n"
    assert link.stop(record.job_id, force=True).state is State.ENDED


def test_what_was_read_takes_up_no_memory(side: RootSide, link: Link) -> None:
    record = link.start("/bin/sh", "-c", "cat > /dev/null", stdin_open=True)
    link.feed(record.job_id, bytes(20 * 1024 * 1024))
    shared = next(
        int(line.split()[1])
        for line in Path(f"/proc/{side.supervisor_pid()}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )
    files = [os.stat(f"/proc/{side.supervisor_pid()}/fd/{fd}") for fd in memory_files(side.supervisor_pid())]
    assert files, "no file of what waits"
    assert sum(file.st_blocks * 512 for file in files) <= 2 * MOST_HELD
    assert shared < 64 * 1024
    link.stop(record.job_id, force=True)


def memory_files(pid: int) -> list[str]:
    directory = f"/proc/{pid}/fd"
    return [fd for fd in os.listdir(directory) if "memfd:stdin" in os.readlink(f"{directory}/{fd}")]


# Who dies.


def test_no_byte_is_lost_or_comes_twice_when_the_supervisor_is_killed(side: RootSide, link: Link) -> None:
    data = pattern(6 * 1024 * 1024)
    record = link.start("/usr/bin/sha256sum", stdin_open=True)
    at = 0
    while at < len(data):
        piece = data[at : at + len(data) // 10]
        link.feed(record.job_id, piece, offset=at)
        at += len(piece)
        # Some of these are taken, some are not, and the supervisor is killed over any of them.
        for begin in range(at, at + 4 * MAX_STDIN_BYTES, MAX_STDIN_BYTES):
            piece = data[begin : begin + MAX_STDIN_BYTES]
            link.send(messages.WriteStdin(CALLER, record.job_id, begin, piece, end=False))
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        link = side.reconnect(subscribe=True)
        at = link.inspect(record.job_id).stdin_bytes
    link.write_stdin(record.job_id, offset=len(data), end=True)
    ended = link.wait_ended(record.job_id)
    assert link.read_log(ended) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


@pytest.mark.parametrize("who", ["supervisor", "keeper", "upgrade"])
def test_no_death_looks_like_the_end(side: RootSide, link: Link, who: str) -> None:
    record = link.start("/bin/cat", stdin_open=True)
    link.feed(record.job_id, b"before ")
    before = side.supervisor_pid()
    match who:
        case "supervisor":
            os.kill(before, signal.SIGKILL)
        case "keeper":
            side.kill_keeper()
        case "upgrade":
            os.kill(before, signal.SIGUSR2)
    link.drain()
    link = side.reconnect(subscribe=True)
    now = link.inspect(record.job_id)
    assert (now.state, now.stdin_open, now.stdin_bytes) == (State.RUNNING, True, 7)
    link.feed(record.job_id, b"after", offset=7, end=True)
    ended = link.wait_ended(record.job_id)
    assert (link.read_log(ended), ended.exit_code) == (b"before after", 0)


def test_an_end_that_was_taken_is_not_forgotten(side: RootSide, link: Link) -> None:
    # More than a pipe holds: the rest waits, and the end behind it.
    data = pattern(100_000)
    record = link.start("/bin/sh", "-c", "mkfifo go; read go < go; sha256sum", stdin_open=True)
    side.wait_for(lambda: os.path.exists(os.path.join(record.workdir, "go")))
    link.feed(record.job_id, data, end=True)
    with pytest.raises(StdinEnded, match="its end was written"):
        link.write_stdin(record.job_id, b"more")
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    link = side.reconnect(subscribe=True)
    with pytest.raises(StdinEnded, match="its end was written"):
        link.write_stdin(record.job_id, b"more")
    assert link.write_stdin(record.job_id, offset=len(data), end=True).whole
    Path(record.workdir, "go").write_text("go\n")
    ended = link.wait_ended(record.job_id)
    assert link.read_log(ended) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


# How it ends otherwise.


def test_a_job_that_closes_it_is_told_of(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "exec < /dev/null; echo closed; sleep 1000", stdin_open=True)
    link.wait_output(record.job_id)
    until(lambda: link.inspect(record.job_id).stdin_open, False)
    with pytest.raises(StdinEnded, match="the job has closed it") as caught:
        link.write_stdin(record.job_id, b"x")
    assert caught.value.taken == 0
    link.stop(record.job_id, force=True)


def test_who_waits_for_room_hears_of_the_job_s_end(link: Link) -> None:
    record = link.start("/bin/sleep", "1000", stdin_open=True)
    while link.write_stdin(record.job_id, bytes(MAX_STDIN_BYTES)).whole:
        pass
    link.stop(record.job_id, force=True)
    link._wait_room(record.job_id)
    with pytest.raises(StdinEnded, match="the job has ended") as caught:
        link.write_stdin(record.job_id, b"x")
    assert 0 < caught.value.taken <= MOST_HELD


def test_what_is_refused(link: Link) -> None:
    closed = link.start("/bin/sleep", "1000", stdin=b"x").job_id
    record = link.start("/bin/cat", stdin_open=True)
    with pytest.raises(StdinEnded, match="not open"):
        link.write_stdin(closed, b"x")
    with pytest.raises(StdinOffset) as caught:
        link.write_stdin(record.job_id, b"x", offset=1)
    assert (caught.value.offset, caught.value.taken) == (1, 0)
    with pytest.raises(InvalidField, match="data"):
        link.write_stdin(record.job_id, bytes(MAX_STDIN_BYTES + 1))
    with pytest.raises(JobNotFound):
        link.write_stdin("k7f3-9m2q-x4tz-b1cd", b"x")
    with pytest.raises(InvalidField, match="job_id"):
        link.write_stdin("../x", b"x")
    link.write_stdin(record.job_id, end=True)
    assert link.wait_ended(record.job_id).stdin_bytes == 0


def test_two_writers_do_not_mix(side: RootSide, link: Link) -> None:
    other = side.link()
    record = link.start("/bin/cat", stdin_open=True)
    link.write_stdin(record.job_id, b"first ", offset=0)
    with pytest.raises(StdinOffset) as caught:
        other.write_stdin(record.job_id, b"second", offset=0)
    other.write_stdin(record.job_id, b"second", offset=caught.value.taken, end=True)
    assert link.read_log(link.wait_ended(record.job_id)) == b"first second"


def test_it_has_the_bound_that_is_set(tmp_path: Path) -> None:
    with root_side(str(tmp_path), max_stdin_bytes=10) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/cat", stdin=b"123", stdin_open=True)
        link.write_stdin(record.job_id, b"4567890")
        with pytest.raises(StdinTooLarge, match="may have 10 bytes"):
            link.write_stdin(record.job_id, b"x")
        link.write_stdin(record.job_id, end=True)
        assert link.read_log(link.wait_ended(record.job_id)) == b"1234567890"


def test_no_descriptor_is_left_of_it(side: RootSide, link: Link) -> None:
    def one_life() -> None:
        record = link.start("/bin/cat", stdin_open=True)
        link.feed(record.job_id, b"x", end=True)
        link.wait_ended(record.job_id)
        link.wait_ended(link.start("/bin/true", stdin_open=True).job_id)

    def held_by_keeper() -> int:
        return len(os.listdir(f"/proc/{side.keeper_pid}/fd"))

    held = held_by_keeper()
    one_life()
    before = side.open_files(link)
    for _ in range(5):
        one_life()
    # It lets go when it comes to that, also of what it held at the beginning.
    side.wait_for(lambda: held_by_keeper() <= held)
    assert side.open_files(link) == before


def test_it_is_on_record_without_what_it_holds(side: RootSide, link: Link) -> None:
    record = link.start("/bin/cat", stdin_open=True)
    link.feed(record.job_id, b"s3cret")
    link.feed(record.job_id, b"s3cret", offset=6, end=True)
    link.wait_ended(record.job_id)
    (begun,) = (line for line in events(side.state_dir, "calls") if line.get("job") == record.job_id)
    assert (begun["event"], begun["offset"], begun["claimed"]["principal"]) == (
        "stdin_written",
        0,
        CALLER.principal,
    )
    (ended,) = (
        line
        for line in events(side.state_dir, "jobs")
        if line.get("job") == record.job_id and line["event"] == "stdin_ended"
    )
    assert (ended["bytes"], ended["why"]) == (12, "its end was written")
    for path, _, names in os.walk(side.state_dir):
        for name in names:
            file = Path(path, name)
            # Where the job has put it is its own affair.
            if file.is_file() and "/work/" not in str(file) and "/logs/" not in str(file):
                assert b"s3cret" not in file.read_bytes()

"""Input from a client to a job, by the library and by worker-client, of any size and as it comes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.client import Endpoint, connect
from jobworker.client.failures import CallFailed
from jobworker.client.output import Chunk
from jobworker.client.rpc.client import Client
from jobworker.jobs import JobSpec
from support import processes
from support.agent import DEADLINE, Agent
from support.waiting import until
from support.whole import Whole

LARGE = 3 * 1024 * 1024 + 1


@pytest.fixture
def client(agent: Agent) -> Iterator[Client]:
    files = (os.path.join(agent.pki_dir, name) for name in ("ca.pem", "writer.pem", "writer.key"))
    with connect(Endpoint(agent.addr, *files)) as connected:
        yield connected


def output(client: Client, job_id: str) -> bytes:
    return b"".join(item.data for item in client.stream(job_id, follow=True) if isinstance(item, Chunk))


def checksum(data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


# The library.


def test_all_of_it(client: Client) -> None:
    data = os.urandom(LARGE)
    job = client.start(JobSpec("sha256sum", stdin_open=True))
    written = client.write_stdin(job.id, [data[:10], data[10:]])
    assert (written.taken, written.ended) == (LARGE, True)
    assert output(client, job.id) == checksum(data)


def test_in_several_goes(client: Client) -> None:
    job = client.start(JobSpec("cat", stdin=b"one ", stdin_open=True))
    assert client.write_stdin(job.id, [], end=False).taken == 4
    assert client.write_stdin(job.id, [b"two "], end=False, offset=4).taken == 8
    assert client.query(job.id).stdin_open
    assert client.write_stdin(job.id, [b"three"]).ended
    assert output(client, job.id) == b"one two three"


def test_each_piece_is_under_way_while_the_next_one_is_waited_for(client: Client) -> None:
    job = client.start(JobSpec("cat", stdin_open=True))
    seen = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"first "
        assert seen.wait(DEADLINE)
        yield b"second"

    def follow() -> None:
        next(item for item in client.stream(job.id, follow=True) if isinstance(item, Chunk) and item.data)
        seen.set()

    threading.Thread(target=follow).start()
    client.write_stdin(job.id, pieces())
    assert output(client, job.id) == b"first second"


def test_a_job_that_wants_no_more(client: Client) -> None:
    job = client.start(JobSpec("head", ("-c", "5"), stdin_open=True))
    with pytest.raises(CallFailed) as caught:
        client.write_stdin(job.id, [bytes(LARGE)])
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "STDIN_ENDED")
    assert 5 <= int(caught.value.metadata["taken"]) < LARGE
    assert output(client, job.id) == bytes(5)


def test_what_cannot_be_read_here_leaves_the_input_open(client: Client) -> None:
    job = client.start(JobSpec("cat", stdin_open=True))

    def pieces() -> Iterator[bytes]:
        yield b"some "
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        client.write_stdin(job.id, pieces())
    taken = client.write_stdin(job.id, [b"more"]).taken
    assert output(client, job.id)[-4:] == b"more"
    assert taken in (4, 9)


@pytest.mark.root
def test_nothing_is_lost_or_comes_twice_whatever_dies(whole: Whole) -> None:
    data = os.urandom(4 * LARGE)
    with connect(whole.endpoint()) as client:
        job = client.start(JobSpec("sha256sum", stdin_open=True))
        link = whole.side.link()

        def pieces() -> Iterator[bytes]:
            nonlocal link
            for number, at in enumerate(range(0, len(data), LARGE // 2)):
                yield data[at : at + LARGE // 2]
                if number % 2:
                    link = whole.kill_supervisor(link)
                else:
                    whole.kill_gateway()
                    link = whole.side.reconnect()

        assert client.write_stdin(job.id, pieces()).taken == len(data)
        assert output(client, job.id) == checksum(data)


# The command line.


@pytest.mark.root
def test_what_a_break_has_cut_off_is_sent_again_while_the_next_piece_is_waited_for(whole: Whole) -> None:
    with connect(whole.endpoint()) as client:
        job = client.start(JobSpec("cat", stdin_open=True))

        def pieces() -> Iterator[bytes]:
            # It takes nothing from now on, and has not told of anything.
            whole.gateway.process.send_signal(signal.SIGSTOP)
            yield b"first\n"
            whole.kill_gateway()
            until(lambda: client.query(job.id).stdin_bytes == len(b"first\n"), True, DEADLINE)
            yield b"second\n"

        assert client.write_stdin(job.id, pieces()).ended
        assert output(client, job.id) == b"first\nsecond\n"


def test_run_takes_as_much_as_comes(agent: Agent, tmp_path: Path) -> None:
    data = os.urandom(LARGE)
    assert agent.cli("run", "--stdin", "-", "--", "sha256sum", input=data, check=True).stdout == checksum(data)
    (tmp_path / "data").write_bytes(data)
    done = agent.cli("run", "--stdin", str(tmp_path / "data"), "--", "sha256sum", check=True)
    assert done.stdout == checksum(data)


def test_run_hands_on_each_line_as_it_comes(agent: Agent) -> None:
    pipe = subprocess.PIPE
    script = 'while read line; do echo "got $line"; done; echo end'
    command = agent.command("run", "--stdin", "-", "--", "sh", "-c", script)
    with processes.running(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin
        assert process.stdout
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.stdin.close()
        assert process.stdout.read() == b"end\n"
        process.wait(DEADLINE)
    assert process.returncode == 0


def test_run_ends_with_its_job_whatever_is_still_to_come(agent: Agent) -> None:
    """Also while it waits for more, or there is no end of it."""
    done = agent.cli("run", "--stdin", "/dev/zero", "--", "head", "-c", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(7), b"")
    reading, writing = os.pipe()
    with open(reading, "rb") as silent, open(writing, "wb"):
        command = agent.command("run", "--stdin", "-", "--", "sh", "-c", "exit 5")
        ended = subprocess.run(command, stdin=silent, capture_output=True, check=False, timeout=DEADLINE)
    assert (ended.returncode, ended.stderr) == (5, b"")


def test_start_ends_when_its_job_has_all_of_it(agent: Agent, tmp_path: Path) -> None:
    data = os.urandom(LARGE)
    (tmp_path / "data").write_bytes(data)
    job_id = agent.start_job("--stdin", str(tmp_path / "data"), "--", "sha256sum")
    assert agent.query(job_id)["stdin_bytes"] == LARGE
    assert agent.cli("stream", "--follow", job_id, check=True).stdout == checksum(data)


@pytest.mark.parametrize("command", ["run", "start"])
def test_a_start_that_is_repeated_goes_on_with_the_input(agent: Agent, tmp_path: Path, command: str) -> None:
    data, file, ready = os.urandom(LARGE), tmp_path / "data", os.path.join(agent.directory, f"ready-{command}")
    file.write_bytes(data)
    script = f"until [ -e {ready} ]; do sleep 0.1; done; exec sha256sum"
    words = (command, "--idempotency-key", command, "--stdin", str(file), "--", "sh", "-c", script)
    with processes.running(agent.command(*words), stdout=subprocess.DEVNULL):
        # As much as is taken of what nobody reads.
        until(lambda: len(jobs := keyed(agent)) == 1 and jobs[0]["stdin_bytes"] > 100_000, True, DEADLINE)
    (job,) = keyed(agent)
    with processes.running(agent.command(*words), stdout=subprocess.PIPE) as second:
        with open(ready, "wb"):
            pass
        assert second.stdout
        told = second.stdout.read()
        second.wait(DEADLINE)
    assert second.returncode == 0
    assert told == (checksum(data) if command == "run" else f"{job['id']}\n".encode())
    assert agent.cli("stream", "--follow", job["id"], check=True).stdout == checksum(data)
    # All of it, and its end, was taken before.
    assert agent.cli(*words, check=True).stdout == told
    os.unlink(ready)


def keyed(agent: Agent) -> list[dict[str, Any]]:
    """The jobs that wait in `sh`, as Query tells them."""
    listed = agent.cli("list", "--state", "running", "--format", "json", check=True).stdout.splitlines()
    return [agent.query(job["id"]) for job in map(json.loads, listed) if job["command"].endswith("sh")]


def test_write(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"two ")
    job_id = agent.start_job("--stdin-open", "--", "cat")
    first = agent.cli("write", job_id[:8], "--keep-open", input=b"one ", check=True)
    assert first.stdout.decode() == f"{job_id}  4 bytes\n"
    told = agent.cli("query", job_id, check=True).stdout.decode()
    assert "input        4 bytes taken, open\n" in told
    second = agent.cli("write", job_id, str(file), "--keep-open", "--format", "json", check=True)
    assert json.loads(second.stdout) == {"id": job_id, "taken": 8, "ended": False}
    file.write_bytes(b"one two three")
    third = agent.cli("write", job_id, str(file), "--resume", check=True)
    assert third.stdout.decode() == f"{job_id}  13 bytes, ended\n"
    assert agent.cli("stream", "--follow", job_id, check=True).stdout == b"one two three"
    until(lambda: agent.query(job_id)["state"], "ENDED")
    late = agent.cli("write", job_id, input=b"x")
    assert late.returncode == 1
    assert b"takes no more behind 13 bytes: the job has ended" in late.stderr


def test_write_says_what_is_wrong(agent: Agent, tmp_path: Path) -> None:
    job_id = agent.start_job("--", "sleep", "1000")
    refused = agent.cli("write", job_id, input=b"x")
    assert (refused.returncode, b"it is not open; `stdin_open` at its start" in refused.stderr) == (1, True)
    agent.cli("stop", job_id, "--force", check=True)
    job_id = agent.start_job("--stdin-open", "--", "cat")
    agent.cli("write", job_id, "--keep-open", input=b"12345", check=True)
    over_a_pipe = agent.cli("write", job_id, "--resume", input=b"12345")
    assert (over_a_pipe.returncode, b"--resume: needs a FILE" in over_a_pipe.stderr) == (2, True)
    (tmp_path / "short").write_bytes(b"123")
    short = agent.cli("write", job_id, str(tmp_path / "short"), "--resume")
    assert (short.returncode, b"of which 5 bytes were taken" in short.stderr) == (2, True)
    reader = agent.cli("write", job_id, role="reader", input=b"x")
    assert (reader.returncode, b"needs the role WRITER" in reader.stderr) == (4, True)
    agent.cli("stop", job_id, "--force", check=True)


def test_what_cannot_be_read_here_is_not_taken_for_the_output(agent: Agent) -> None:
    job_id = agent.start_job("--stdin-open", "--", "cat")
    for code, words in ((1, ("write", job_id)), (125, ("run", "--stdin", "-", "--", "cat"))):
        with open(os.devnull, "wb") as unreadable:
            done = subprocess.run(
                agent.command(*words), stdin=unreadable, capture_output=True, check=False, timeout=DEADLINE
            )
        assert (done.returncode, done.stdout) == (code, b"")
        assert b"<stdin>: cannot be used: Bad file descriptor" in done.stderr
    agent.cli("stop", job_id, "--force", check=True)

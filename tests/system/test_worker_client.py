"""worker-client against a whole agent: what users see of real jobs."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
from contextlib import AbstractContextManager
from typing import Any

import pytest

from support import processes, scripted
from support.agent import DEADLINE, Agent, running_agent

SCRIPT_OF_BYTES = "import os\nfor i in range(2000):\n os.write(1 + i % 2, bytes([i % 256]) * (i % 97 + 1))\n"


def written(parity: int | None) -> bytes:
    """What the script above writes to standard output (0), standard error (1), or both."""
    return b"".join(bytes([i % 256]) * (i % 97 + 1) for i in range(2000) if parity in (None, i % 2))


def running(agent: Agent, *args: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return processes.running(agent.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return process.stdout.readline()


def newest(agent: Agent, *args: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(
        agent.cli("list", "--limit", "1", "--format", "json", *args, check=True).stdout
    )
    return job


def test_run_brings_both_outputs_unchanged_and_apart(agent: Agent) -> None:
    done = agent.cli("run", "--", "/usr/bin/python3", "-c", SCRIPT_OF_BYTES)
    assert done.returncode == 0
    assert done.stdout == written(0)
    assert done.stderr == written(1)


def test_run_hands_on_what_it_is_to_read(agent: Agent) -> None:
    data = bytes(range(256)) * 16
    assert agent.cli("run", "--stdin", "-", "--", "cat", input=data).stdout == data
    # And nothing that it was not told to.
    assert agent.cli("run", "--", "cat", input=data).stdout == b""


def test_stream_brings_all_output_from_any_offset(agent: Agent) -> None:
    job_id = agent.start_job("--", "/usr/bin/python3", "-c", SCRIPT_OF_BYTES)
    both = agent.cli("stream", "-f", job_id, check=True).stdout
    assert sorted(both) == sorted(written(None))
    assert agent.cli("logs", job_id, check=True).stdout == both
    assert agent.cli("stream", job_id, "--offset", "12345", check=True).stdout == both[12345:]
    assert agent.cli("stream", job_id, "--stdout", check=True).stdout == written(0)
    assert agent.cli("stream", job_id, "--stderr", check=True).stdout == written(1)
    assert agent.cli("stream", job_id, "--offset", str(len(both)), check=True).stdout == b""
    beyond = agent.cli("stream", job_id, "--offset", str(len(both) + 1))
    assert (beyond.returncode, b"beyond the end" in beyond.stderr) == (2, True)


def test_json_of_a_stream_says_where_and_who(agent: Agent) -> None:
    done = agent.cli("run", "sh", "-c", "echo err >&2")
    assert (done.stdout, done.stderr) == (b"", b"err\n")
    out = agent.cli("stream", newest(agent)["id"], "--stderr", "--format", "json", check=True).stdout
    line, end = map(json.loads, out.splitlines())
    assert line.pop("time").startswith("20")
    assert line == {"type": "line", "offset": 0, "end": 4, "source": "STDERR", "text": "err"}
    assert end == {"type": "end", "offset": 4, "output_ended": True}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("no-such-command",), 127),
        (("/etc/passwd",), 126),
        (("--workdir", "/no/such", "true"), 125),
        (("--timeout", "100ms", "sleep", "60"), 143),
        (("sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 5"), 5),
    ],
)
def test_run_exits_as_the_job_did(agent: Agent, words: tuple[str, ...], code: int) -> None:
    done = agent.cli("run", *words)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""


@pytest.mark.root
def test_run_says_that_the_job_was_killed_for_its_memory(agent: Agent) -> None:
    hungry = "x = bytearray(256 << 20)"
    done = agent.cli("run", "--memory", "32M", "--", "/usr/bin/python3", "-c", hungry)
    assert done.returncode == 137
    assert b"for going over its memory limit (32M)" in done.stderr
    job = newest(agent)
    assert job["end_reason"] == "OOM_KILLED"
    assert job["limits"]["memory"] == {"requested": "32M", "value": "32M", "enforcement": "ENFORCED", "detail": ""}


def test_ctrl_c_stops_the_job_and_shows_how_it_went(agent: Agent) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    with running(agent, "run", "sh", "-c", script) as process:
        assert line_of(process) == b"up\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, b"bye\n")
    assert b"stopping job" in err
    job = newest(agent)
    assert (job["state"], job["end_reason"], job["exit_code"]) == ("ENDED", "STOPPED", 9)


def test_ctrl_c_may_leave_the_job_running(agent: Agent) -> None:
    with running(agent, "run", "--detach-on-interrupt", "sh", "-c", "echo up; exec sleep 1000") as process:
        assert line_of(process) == b"up\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    job = newest(agent, "--state", "running")
    assert job["args"] == ["-c", "echo up; exec sleep 1000"]
    stopped = agent.cli("stop", job["id"][:9], "--format", "json", check=True)
    assert json.loads(stopped.stdout)["end_reason"] == "STOPPED"


def test_a_command_that_nobody_reads_is_stopped(agent: Agent) -> None:
    with running(agent, "run", "yes") as process:
        assert line_of(process) == b"y\n"
        assert process.stdout
        process.stdout.close()
        assert process.wait(DEADLINE) == 141
        assert process.stderr
        assert process.stderr.read() == b""
    job = newest(agent)
    assert job["command"] == "yes"
    assert agent.cli("stop", job["id"]).returncode in (0, 1)
    assert agent.query(job["id"])["end_reason"] == "STOPPED"


def test_stop_is_obeyed_to_the_letter(agent: Agent) -> None:
    deaf = agent.start_job("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done")
    with running(agent, "stream", "-f", deaf) as process:
        assert line_of(process) == b"deaf\n"
        assert agent.cli("stop", deaf, "--grace", "100ms").stdout == f"{deaf}  STOPPED\n".encode()
        assert process.wait(DEADLINE) == 0
    assert agent.query(deaf)["signal"] == signal.SIGKILL
    polite = agent.start_job("sh", "-c", "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done")
    with running(agent, "stream", "-f", polite) as process:
        assert line_of(process) == b"up\n"
        assert agent.cli("stop", polite, "--signal", "USR1").returncode == 0
    assert agent.query(polite)["exit_code"] == 4
    again = agent.cli("stop", polite)
    assert (again.returncode, b"already ended (STOPPED)" in again.stderr) == (1, True)


def test_query_tells_all_that_the_design_promises(agent: Agent) -> None:
    job_id = agent.start_job(
        "--env", "SECRET=hidden", "--label", "kind=query", "--timeout", "90s", "sleep", "1000"
    )
    job = agent.query(job_id)
    assert (job["id"], job["state"], job["end_reason"]) == (job_id, "RUNNING", None)
    assert (job["command"], job["args"], job["labels"]) == ("sleep", ["1000"], {"kind": "query"})
    assert (job["env_names"], job["timeout_seconds"]) == (["SECRET"], 90)
    assert job["principal"].endswith("/user/writer")
    assert job["limits"]["pids"]["requested"] == "1024"
    assert job["created_at"] <= job["started_at"]
    assert os.path.exists(job["log_path"])
    as_text = agent.cli("query", job_id, role="reader", check=True).stdout.decode()
    assert "hidden" not in as_text
    assert f"process      {job['pid']}, user id {job['uid']}" in as_text
    assert agent.cli("stop", job_id, "--force").returncode == 0


def test_list_filters(agent: Agent) -> None:
    jobs = [agent.start_job("--label", "batch=list", "--label", f"n={n}", "true") for n in range(3)]
    for job in jobs:
        agent.cli("stream", "-f", job, check=True)

    def listed(*args: str) -> list[str]:
        out = agent.cli("list", "--format", "json", *args, role="reader", check=True).stdout
        return [json.loads(line)["id"] for line in out.splitlines()]

    assert listed("--label", "batch=list") == jobs[::-1]
    assert listed("--label", "batch=list", "--label", "n=1") == [jobs[1]]
    assert listed("--label", "batch=list", "--limit", "2") == jobs[:0:-1]
    assert listed("--label", "batch=list", "--principal", "spiffe://x/user/y") == []
    assert listed("--label", "batch=list", "--state", "pending") == []
    assert listed("--label", "batch=list", "--state", "lost") == []
    assert listed("--label", "batch=list", "--state", "exited", "--state", "running") == jobs[::-1]
    created = json.loads(agent.cli("query", jobs[1], "--format", "json", check=True).stdout)["created_at"]
    # As it is shown: to the microsecond, which is no later than the nanosecond that it was.
    assert listed("--label", "batch=list", "--since", created) == jobs[:0:-1]
    assert listed("--label", "batch=list", "--until", created) == [jobs[0]]
    assert listed("--label", "batch=list", "--since", "1h", "--until", "30m") == []


def test_a_reader_may_look_and_no_more(agent: Agent) -> None:
    job_id = agent.start_job("echo", "hello")
    assert agent.cli("stream", "-f", job_id, role="reader").stdout == b"hello\n"
    assert agent.cli("query", job_id, role="reader").returncode == 0
    assert agent.cli("info", role="reader").returncode == 0
    for args, code in ((("start", "true"), 4), (("stop", job_id), 4), (("run", "true"), 125)):
        done = agent.cli(*args, role="reader")
        assert (done.returncode, done.stdout) == (code, b"")
        assert b"needs the role WRITER" in done.stderr


@pytest.mark.root
def test_top_shows_what_a_busy_job_uses(agent: Agent) -> None:
    job_id = agent.start_job("--", "sh", "-c", "while :; do :; done")
    done = agent.cli("top", "--once", "--interval", "500ms", "--format", "json", check=True)
    uses = {use["id"]: use for use in map(json.loads, done.stdout.splitlines())}
    agent.cli("stop", job_id, "--force", check=True)
    assert uses[job_id]["cpu_percent"] > 0
    assert (uses[job_id]["host"], uses[job_id]["processes"]) == (os.uname().nodename, 1)


def test_an_id_that_is_not_there(agent: Agent) -> None:
    for args in (("query", "0000-0000-0000-0000"), ("stream", "0000-0000-0000-0000"), ("query", "00000")):
        done = agent.cli(*args)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"worker-client: no job 0000")


def test_a_stream_survives_a_wire_that_keeps_breaking(agent: Agent) -> None:
    script = "head -c 3000000 /dev/urandom | tee /dev/stderr | sha256sum >&2"
    job_id = agent.start_job("bash", "-c", script)
    agent.cli("stream", "-f", job_id, check=True)
    budgets = itertools.cycle((700_000, 60_000, 1_000, 900_000))
    with scripted.breaking_wire(int(agent.addr.rpartition(":")[2]), budgets) as wire:
        done = agent.cli("--addr", f"127.0.0.1:{wire.port}", "--server-name", "127.0.0.1", "stream", job_id)
    assert done.returncode == 0, done.stderr
    data, told = done.stdout[:3_000_000], done.stdout[3_000_000:]
    assert told.split()[0] == hashlib.sha256(data).hexdigest().encode()
    assert wire.connections > 4


def test_followers_do_not_notice_that_the_agent_was_killed() -> None:
    script = "for i in $(seq 3000); do echo $i; done; sleep 3; seq 3001 6000"
    with running_agent() as agent:
        port = int(agent.addr.rpartition(":")[2])
        with scripted.breaking_wire(port, itertools.repeat(10**9)) as wire:
            args = ("--addr", f"127.0.0.1:{wire.port}", "run", "bash", "-c", script)
            with running(agent, *args) as process:
                assert line_of(process) == b"1\n"
                agent.kill()
                agent.restart()
                wire.target = int(agent.addr.rpartition(":")[2])
                out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    assert out == b"".join(b"%d\n" % i for i in range(2, 6001))
    assert wire.connections > 1

"""What the Tab key offers, and that it never speaks of failures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted
from support.waiting import until

ID, ENDED = "k7f3-9m2q-x4tz-b1cd", "k7aa-9m2q-x4tz-b1cd"
JOBS = [
    job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_RUNNING, command="make", labels={"team": "build", "x": "1 2"}),
    job_pb2.Job(id=ENDED, state=job_pb2.JOB_STATE_ENDED, command="\x1b]0;x\x07\nplain,evil", labels={"tier": "a"}),
]


@pytest.fixture
def agent() -> Iterator[scripted.ScriptedAgent]:
    with scripted.scripted_agent() as running:
        running.handlers["List"] = listed
        yield running


def listed(request: pb.ListRequest, _context: object) -> pb.ListResponse:
    found = [job for job in JOBS if not request.states or job.state in request.states]
    return pb.ListResponse(jobs=[job for job in found if job.id.startswith(request.id_prefix)])


def variables(agent: scripted.ScriptedAgent, **more: str) -> dict[str, str]:
    it = agent.endpoint()
    files = {"JOBWORKER_CA": it.ca, "JOBWORKER_CERT": it.cert, "JOBWORKER_KEY": it.key}
    directory = os.path.dirname(scripted.program())
    return {
        "HOME": "/nonexistent",
        "PATH": f"{directory}:/usr/bin:/bin",
        "JOBWORKER_ADDR": it.addr,
        **files,
        **more,
    }


def offers(agent: scripted.ScriptedAgent, line: str, **more: str) -> list[str]:
    """What bash offers behind a line, asked by the script that is made for it."""
    asked = """
        source <(worker-client completion bash)
        compopt() { :; }
        COMP_LINE=$1 COMP_POINT=${#1}
        _worker_client_completion worker-client
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", asked, "bash", line],
        env=variables(agent, **more),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().split("\n")[:-1]


def offered(agent: scripted.ScriptedAgent, line: str, expected: list[str], **more: str) -> None:
    """Wait until this is offered: an agent on a slow machine may be asked in vain at first."""
    until(lambda: offers(agent, line, **more), expected, seconds=60)


def test_commands_and_options(agent: scripted.ScriptedAgent) -> None:
    assert offers(agent, "worker-client dr") == ["drain"]
    assert offers(agent, "worker-client stop --gr") == ["--grace", "--group"]
    assert not agent.requests


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("query ", [ID, ENDED]),
        ("query k7a", [ENDED]),
        ("query k7f3-9", [ID]),
        ("stop ", [ID]),
        ("signal ", [ID]),
        ("update ", [ID]),
        ("stop --label te", ["team="]),
        ("delete ", [ENDED]),
        ("wait k7aa k7f", [ID]),
        ("watch ", [ID, ENDED]),
        ("logs ", [ID, ENDED]),
        ("signal k7f3 US", ["USR1", "USR2"]),
        ("signal k7f3 sigus", ["SIGUSR1", "SIGUSR2"]),
        ("stop --signal HU", ["HUP"]),
        ("start --sandbox st", ["standard", "strict"]),
        ("list --state run", ["running"]),
        ("list --label t", ["team=", "tier="]),
        ("list --label team=", ["build"]),
        ("list --label team=bu", ["build"]),
        ("list --label x=", [""]),
        ("run --label te", ["team="]),
        ("top --sort p", ["pids"]),
        ("completion f", ["fish"]),
        ("--format js", ["json"]),
        ("--format=js", ["json"]),
    ],
)
def test_what_is_offered(agent: scripted.ScriptedAgent, line: str, expected: list[str]) -> None:
    offered(agent, f"worker-client {line}", expected)


def test_the_agent_that_the_line_names_is_asked(agent: scripted.ScriptedAgent) -> None:
    addr = agent.endpoint().addr
    for line in (f"--addr {addr} query ", f"query --addr {addr} ", f"query --addr={addr} "):
        offered(agent, f"worker-client {line}", [ID, ENDED], JOBWORKER_ADDR="nowhere.invalid:1")


def test_contexts(agent: scripted.ScriptedAgent, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("contexts: {staging: {addr: 'a:1'}, stable: {}, 'st$(x) y': {}}")
    assert offers(agent, "worker-client --context st", JOBWORKER_CONFIG=str(config)) == ["staging", "stable"]
    config.write_text("contexts: [")
    assert offers(agent, "worker-client --context st", JOBWORKER_CONFIG=str(config)) == [""]


def test_nothing_is_said_where_nobody_can_be_asked(agent: scripted.ScriptedAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"127.0.0.1:{silent.getsockname()[1]}"
        for addr in ("nowhere.invalid:1", "127.0.0.1:1", "no address", hanging):
            assert offers(agent, "worker-client query ", JOBWORKER_ADDR=addr) == [""]
    assert offers(agent, "worker-client query ", JOBWORKER_CERT="/nonexistent") == [""]


def test_what_is_no_plain_word_reaches_no_command_line(agent: scripted.ScriptedAgent) -> None:
    hostile = job_pb2.Job(id=ID, labels={"a\nplain,b": "", "; reboot": "", "ok": "`x`"})
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(jobs=[hostile])
    offered(agent, "worker-client list --label ", ["ok="])
    assert offers(agent, "worker-client list --label ok=") == [""]
    hostile.id = "k7f3$(reboot)"
    assert offers(agent, "worker-client query ") == [""]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_what_the_jobs_are(agent: scripted.ScriptedAgent, shell: str) -> None:
    asked: dict[str, Any] = {
        "zsh": {"COMP_WORDS": "worker-client query k7", "COMP_CWORD": "2"},
        "fish": {"COMP_WORDS": "worker-client query k7", "COMP_CWORD": "k7"},
    }[shell]
    told = {
        "zsh": f"plain\n{ID}\nRUNNING make\nplain\n{ENDED}\nENDED '\\x1b]0;x\\x07\\nplain,evil'\n",
        "fish": f"plain,{ID}\tRUNNING make\nplain,{ENDED}\tENDED '\\x1b]0;x\\x07\\nplain,evil'\n",
    }
    environment = variables(agent, _WORKER_CLIENT_COMPLETE=f"{shell}_complete", **asked)

    def said() -> str:
        done = subprocess.run([scripted.program()], env=environment, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    until(said, told[shell], seconds=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_one_that_its_shell_takes(agent: scripted.ScriptedAgent, shell: str) -> None:
    agent.close()
    done = agent.cli("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"_WORKER_CLIENT_COMPLETE" in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, check=True, timeout=60)

"""`worker-client top`: on a terminal, and where there is none."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted
from support.terminals import Terminal, terminal

IDS = ("aaaa-9m2q-x4tz-b1cd", "bbbb-9m2q-x4tz-b1cd")
OTHER_SCREEN, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
SEQUENCE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
HOSTILE = "\x1b]0;owned\x07\r\n\x9b2J"


class Host:
    """Two jobs, of which the first has more memory, and the second uses more of all else with each look.

    Attributes:
        gone: jobs that are not there when they are asked for.
        down: the agent cannot look.
        number: how many active jobs it lists.
    """

    def __init__(self, agent: scripted.ScriptedAgent) -> None:
        self.gone: set[str] = set()
        self.down = False
        self.number = len(IDS)
        self._looks = {job_id: itertools.count(1) for job_id in IDS}
        agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse(hostname="build7")
        agent.handlers["List"] = self._list
        agent.handlers["Query"] = self._query

    def _list(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListResponse:
        if self.down:
            scripted.fail(context, "INTERNAL", "HOST_FAULT", f"the disk is gone{HOSTILE}")
        assert job_pb2.JOB_STATE_ENDED not in request.states
        return pb.ListResponse(jobs=[job_pb2.Job(id=IDS[i % 2]) for i in range(self.number)])

    def _query(self, request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:
        if request.job_id in self.gone:
            scripted.fail(context, "NOT_FOUND", "JOB_NOT_FOUND", "no such job")
        looks, second = next(self._looks[request.job_id]), request.job_id == IDS[1]
        job = job_pb2.Job(
            id=request.job_id,
            state=job_pb2.JOB_STATE_RUNNING,
            principal=f"spiffe://example.org/user/ann{HOSTILE}",
            command="work",
            args=[HOSTILE],
        )
        job.usage.cpu_time.FromMilliseconds(100 * looks if second else 100)
        job.usage.io_read_bytes = 10**9 * looks if second else 5
        job.usage.memory_bytes = 1024**2 if second else 1024**3
        job.usage.processes = 7 if second else 3
        return pb.QueryResponse(job=job)


@pytest.fixture
def host(agent: scripted.ScriptedAgent) -> Host:
    return Host(agent)


def order(lines: list[str]) -> list[str]:
    """The jobs of a picture or table, as they follow."""
    found = (re.match(r"(\w{4}-\w{4}-\w{4}-\w{4}) ", line) for line in lines)
    return [match[1] for match in found if match]


def test_without_a_terminal_it_is_one_plain_table(agent: scripted.ScriptedAgent, host: Host) -> None:
    assert host.number == 2
    done = agent.cli("top", "--interval", "200ms")
    assert (done.returncode, done.stderr) == (0, b"")
    head, first, second = done.stdout.decode().splitlines()
    assert head.split() == ["ID", "HOST", "BY", "CPU%", "MEMORY", "READ/s", "WRITE/s", "PIDS", "AGE", "COMMAND"]
    assert (order([first, second]), first.split()[1]) == ([IDS[1], IDS[0]], "build7")
    assert all(line.isprintable() for line in (head, first, second))
    assert float(first.split()[3]) > 0
    assert [second.split()[i] for i in (3, 4, 5, 7)] == ["0.0", "1G", "0", "3"]


def test_json_has_numbers_in_base_units(agent: scripted.ScriptedAgent, host: Host) -> None:
    host.gone = {IDS[0]}
    done = agent.cli("top", "--once", "--interval", "200ms", "--format", "json")
    (job,) = (json.loads(line) for line in done.stdout.splitlines())
    assert job.pop("cpu_percent") > 0
    assert job.pop("io_read_bytes_per_second") > 0
    assert job == {
        "type": "use",
        "id": IDS[1],
        "host": "build7",
        "principal": f"spiffe://example.org/user/ann{HOSTILE}",
        "memory_bytes": 1024**2,
        "io_written_bytes_per_second": 0,
        "processes": 7,
        "command": "work",
        "args": [HOSTILE],
    }


def test_what_sorts_and_how_many(agent: scripted.ScriptedAgent, host: Host) -> None:
    assert host.number == 2
    done = agent.cli("top", "--interval", "200ms", "--sort", "memory")
    assert order(done.stdout.decode().splitlines()) == [IDS[0], IDS[1]]
    done = agent.cli("top", "--interval", "200ms", "--limit", "1")
    assert order(done.stdout.decode().splitlines()) == [IDS[0]]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--interval", "10ms"), b"--interval: is shorter than 200ms; for example 2s"),
        (("--interval", "soon"), b"--interval: 'soon' is not a duration"),
        (("--sort", "luck"), b"--sort"),
        (("--limit", "0"), b"--limit"),
    ],
)
def test_wrong_options_are_told(agent: scripted.ScriptedAgent, flags: tuple[str, str], told: bytes) -> None:
    done = agent.cli("top", *flags)
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr
    assert not agent.requests


def test_a_policy_that_hides_the_host_hides_no_jobs(agent: scripted.ScriptedAgent, host: Host) -> None:
    def deny(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "PERMISSION_DENIED", "POLICY_DENIED", "denied")

    agent.handlers["GetAgentInfo"] = deny
    done = agent.cli("top", "--interval", "200ms")
    assert len(order(done.stdout.decode().splitlines())) == host.number


def live(agent: scripted.ScriptedAgent) -> list[str | bytes]:
    return agent.command("top", "--interval", "200ms")


def is_first(it: Terminal, job_id: str) -> bool:
    return order(it.picture())[:1] == [job_id]


def leave(it: Terminal) -> None:
    it.type(b"q")
    assert it.end() == 0
    assert it.shown.endswith(BACK)
    assert it.modes() == it.before


def test_on_a_terminal_it_stays_until_q(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent), NO_COLOR="") as it:
        it.wait_for("build7: 2 jobs, by cpu")
        it.wait_for(f"{IDS[1]}  build7")
        assert it.shown.startswith(OTHER_SCREEN)
        assert it.modes() != it.before
        assert b"\x1b[7m" in it.shown
        host.number = 0
        it.wait_for("build7: 0 jobs")
        leave(it)


def test_keys_sort(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent)) as it:
        it.wait_for(IDS[0])
        for key, name, first in ((b"m", "memory", 0), (b"p", "pids", 1), (b"i", "io", 1), (b"xc", "cpu", 1)):
            it.type(key)
            it.wait_for(f"2 jobs, by {name};")
            # What is measured takes two looks.
            it.wait_until(functools.partial(is_first, it, IDS[first]))
        assert host.number == 2
        leave(it)


def test_a_picture_fits_the_terminal_also_when_that_changes(agent: scripted.ScriptedAgent, host: Host) -> None:
    host.number = 30
    with terminal(live(agent), columns=80, lines=10) as it:
        it.wait_for("build7: 30 jobs")
        it.resize(30, 4)
        it.process.send_signal(signal.SIGWINCH)
        it.wait_for_bytes(b"\x1b[H" + b"build7: 30 jobs, by cpu; c m i\x1b[K\r\n")
        it.type(b"m")
        it.wait_for("by memory")
        leave(it)
    pictures = [SEQUENCE.sub("", drawn.decode()).split("\r\n") for drawn in it.shown.split(b"\x1b[H")[1:]]
    sizes = [(max(map(len, picture)), len(picture)) for picture in pictures]
    assert (sizes[0], sizes[-1], len(set(sizes))) == ((80, 10), (30, 4), 2)


def test_no_job_controls_the_terminal_nor_does_an_error(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent)) as it:
        it.wait_for(IDS[1])
        host.down = True
        it.wait_for("what follows is not fresh: the disk is gone")
        it.wait_for(IDS[1])
        host.down = False
        it.wait_for("build7: 2 jobs")
        leave(it)
    own = {*re.findall(r"\x1b\[[?0-9;]*[A-Za-z]", it.shown.decode())}
    sent = {"[?1049h", "[?25l", "[?7l", "[H", "[K", "[J", "[7m", "[m", "[?7h", "[?25h", "[?1049l"}
    assert own == {f"\x1b{each}" for each in sent}
    assert SEQUENCE.sub("", it.shown.decode()).replace("\r\n", "").isprintable()


def test_no_color_means_none(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent), NO_COLOR="1") as it:
        it.wait_for(IDS[1])
        leave(it)
    assert not re.search(rb"\x1b\[[0-9;]*m", it.shown)
    assert host.number == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_terminal_as_it_was(
    agent: scripted.ScriptedAgent, host: Host, number: signal.Signals, status: int
) -> None:
    with terminal(live(agent)) as it:
        it.wait_for(IDS[1])
        it.process.send_signal(number)
        assert it.end() == status
        assert BACK in it.shown
        assert it.modes() == it.before
    assert host.number == 2


def test_while_it_is_stopped_the_terminal_is_as_it_was(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent)) as it:
        it.wait_for(IDS[1])
        it.process.send_signal(signal.SIGTSTP)
        os.waitid(os.P_PID, it.process.pid, os.WSTOPPED)
        it.wait_for_bytes(BACK)
        assert it.modes() == it.before
        it.process.send_signal(signal.SIGCONT)
        it.wait_for_bytes(BACK + OTHER_SCREEN)
        it.wait_for(IDS[1])
        leave(it)
    assert host.number == 2


def test_an_agent_that_is_not_there_is_told_without_taking_the_terminal(agent: scripted.ScriptedAgent) -> None:
    agent.close()
    with terminal(live(agent)) as it:
        assert it.end() == 1
        assert b"worker-client: nobody listens at" in it.shown
        assert OTHER_SCREEN not in it.shown


def test_a_dumb_terminal_gets_a_table(agent: scripted.ScriptedAgent, host: Host) -> None:
    with terminal(live(agent), TERM="dumb") as it:
        assert it.end() == 0
        assert b"\x1b" not in it.shown
        assert IDS[0].encode() in it.shown
    assert host.number == 2

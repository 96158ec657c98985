"""`worker-agent dev` as a person or a script uses it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jobworker.cli import dev
from jobworker.limits import Enforcement
from jobworker.sandbox import Part
from jobworker.settings.schema import Settings
from jobworker.wire.host import LimitSupport, PartSupport
from support import processes
from support.agent import DEADLINE, Agent, running_agent
from support.leftovers import cgroups, processes_of, processes_with
from support.scripted_supervisor import HOST
from support.waiting import until, wait_for_end

BIN = os.path.dirname(sys.executable)


@pytest.fixture
def own_agent() -> Iterator[Agent]:
    with running_agent() as running:
        yield running


def following(agent: Agent, job_id: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return processes.running(agent.command("stream", job_id, "--follow"), stdout=subprocess.PIPE)


def test_sigterm_ends_jobs_and_everything_else(own_agent: Agent) -> None:
    script = "trap 'echo bye; exit' TERM; echo up; sleep 1000 & wait"
    jobs = [own_agent.query(own_agent.start_job("--", "sh", "-c", script)) for _ in range(3)]
    with following(own_agent, jobs[0]["id"]) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == b"up\n"
        assert own_agent.close() == 0
        assert follower.stdout.read() == b"bye\n"
        assert follower.wait(DEADLINE) == 0, "the stream ends with its job, not with the agent"
    # Nobody waits for what only flushes.
    until(lambda: processes_with(own_agent.directory), [])
    for job in jobs:
        assert cgroups(job["id"]) == []
        if os.geteuid() == 0:
            assert processes_of(job["uid"]) == []


def test_a_gateway_that_is_late_tells_followers_of_the_end_all_the_same(own_agent: Agent) -> None:
    # All has been said before the gateway takes any of it in, and it shall end by then: more than it has read when
    # it would end its streams, unless it asks first.
    pieces = "for i in $(seq 200); do echo $i; sleep 0.01; done"
    script = f"trap '{pieces}; seq 201 100000; exit 3' TERM; echo up; sleep 1000 & wait"
    job_id = own_agent.start_job("--", "sh", "-c", script)
    gateway = own_agent.pid("gateway")
    with following(own_agent, job_id) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == b"up\n"
        os.kill(gateway, signal.SIGSTOP)
        try:
            own_agent.process.send_signal(signal.SIGTERM)
            until(lambda: is_pending(gateway, signal.SIGTERM), True)
        finally:
            os.kill(gateway, signal.SIGCONT)
        assert own_agent.close() == 0
        said, expected = follower.stdout.read(), "".join(f"{i}\n" for i in range(1, 100_001)).encode()
        assert (len(said), said == expected) == (len(expected), True)
        assert follower.wait(DEADLINE) == 0


def test_killed_it_leaves_jobs_running_and_takes_them_over_again(own_agent: Agent) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 6"
    job_id = own_agent.start_job("--", "sh", "-c", script)
    own_agent.kill()
    own_agent.restart()
    assert own_agent.query(job_id)["id"] == job_id
    streamed = own_agent.cli("stream", job_id, "--follow", check=True).stdout
    assert streamed == "".join(f"{i}\n" for i in range(300)).encode()
    job = own_agent.query(job_id)
    assert (job["state"], job["end_reason"], job["exit_code"]) == ("ENDED", "EXITED", 6)


def test_what_is_taken_over_gets_the_settings_of_now(own_agent: Agent) -> None:
    job_id = own_agent.start_job("--", "sh", "-c", "sleep 1000; exit 6")
    own_agent.kill()
    own_agent.restart("jobs: {max_active: 1}\n")
    refused = own_agent.cli("start", "--", "true")
    assert b"(jobs.max_active) may be 1 at most" in refused.stderr
    assert own_agent.query(job_id)["state"] == "RUNNING"


def test_killed_without_jobs_it_leaves_nothing(own_agent: Agent) -> None:
    keeper = own_agent.pid("keeper")
    own_agent.kill()
    wait_for_end(keeper)


def test_the_supervisor_may_die(own_agent: Agent) -> None:
    job_id = own_agent.start_job(
        "--", "sh", "-c", "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    )
    with following(own_agent, job_id) as follower:
        for _ in range(3):
            os.kill(own_agent.pid("supervisor"), signal.SIGKILL)
            assert own_agent.cli("query", job_id).returncode == 0, "the call waits for the next supervisor"
        assert follower.stdout
        assert follower.stdout.read() == "".join(f"{i}\n" for i in range(300)).encode()
    assert own_agent.close() == 0


def test_an_upgrade_in_place(own_agent: Agent) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    job_id = own_agent.start_job("--", "sh", "-c", script)
    with following(own_agent, job_id) as follower:
        for _ in range(3):
            command = [os.path.join(BIN, "worker-agent"), "upgrade", "--state-dir", own_agent.state_dir]
            subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
        assert follower.stdout
        assert follower.stdout.read() == "".join(f"{i}\n" for i in range(300)).encode()
    assert own_agent.cli("run", "--", "true").returncode == 0


def test_two_on_one_directory(own_agent: Agent) -> None:
    command = [os.path.join(BIN, "worker-agent"), "dev", "--dir", own_agent.directory, "--listen", "127.0.0.1:0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert second.returncode == 1
    assert "another `worker-agent dev` is running" in second.stderr
    assert own_agent.cli("list").returncode == 0


def test_a_port_that_is_taken(own_agent: Agent) -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [os.path.join(BIN, "worker-agent"), "dev", "--dir", directory, "--listen", own_agent.addr]
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert second.returncode == 1
        assert f"listen: {own_agent.addr} cannot be had: it is in use" in second.stderr
        assert "; stop what listens there (ss -ltnp), or give another address\n" in second.stderr
        assert second.stderr.endswith("\nworker-agent: the gateway did not start; what it said stands above\n")
        until(lambda: processes_with(directory), [])


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:7443", "[::]:0", "example.org:1", "7443"])
def test_only_loopback_is_served(listen: str, tmp_path: object) -> None:
    command = [os.path.join(BIN, "worker-agent"), "dev", "--dir", str(tmp_path), "--listen", listen]
    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert run.returncode == 2
    assert "listen: " in run.stderr
    assert "127.0.0.1:7443" in run.stderr


def test_a_configuration_is_obeyed() -> None:
    with running_agent("jobs: {segment_size: 1M, max_active: 1, default_pids: 77}\n") as agent:
        job_id = agent.start_job("--", "sleep", "1000")
        refused = agent.cli("start", "--", "true")
        assert refused.returncode == 1
        assert b"the number of active jobs (jobs.max_active) may be 1 at most" in refused.stderr
        limits = agent.query(job_id)["limits"]
        assert limits["pids"]["requested"] == "77"


def test_every_section_of_a_configuration_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        """
        log_level: debug
        policy: /etc/jobworker/policy.yaml
        limits: /etc/jobworker/limits.yaml
        tls: {certificates: {max_client_life: 1h}}
        jobs: {max_active: 3}
        quotas: {active_jobs: 1}
        isolation: {default: strict}
        metrics: {listen: "127.0.0.1:7444"}
        audit: {keep: 3}
        tracing: {endpoint: "http://127.0.0.1:4317"}
        """
    )
    where = str(tmp_path), str(tmp_path), "127.0.0.1:0"
    made, without = dev._settings(*where, str(config)), dev._settings(*where, None)
    same = {field.name for field in fields(Settings) if getattr(made, field.name) == getattr(without, field.name)}
    # These are asked for on the command line, or go without saying.
    assert same == {"state_dir", "listen", "gateway_uid"}


def test_what_is_not_about_jobs_is_obeyed_too() -> None:
    # The writer's certificate is good for longer than that.
    with running_agent("quotas: {active_jobs: 1}\ntls: {certificates: {max_client_life: 1h}}\n") as agent:
        assert b"the certificate is made for 365 days" in agent.cli("info").stderr


def test_a_bad_configuration_is_explained(tmp_path: object) -> None:
    config = os.path.join(str(tmp_path), "agent.yaml")
    with open(config, "w") as file:
        file.write("jobs: {max_cpu: 50}\n")
    command = [os.path.join(BIN, "worker-agent"), "dev", "--dir", str(tmp_path), "--config", config]
    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert run.returncode == 2
    assert "jobs.max_cpu: must be text" in run.stderr
    check = config_command("check", config)
    assert (check.returncode, check.stderr) == (2, WRONG.format(config))


WRONG = """\
{0}: line 1: jobs.max_cpu: must be text; for example 50%
{0}: line 1: state_dir: is missing; for example state_dir: /var/lib/jobworker
{0}: line 1: listen: is missing; for example listen: 0.0.0.0:7443
{0}: line 1: tls.ca: is missing; for example ca: /etc/jobworker/tls/ca.pem
{0}: line 1: tls.cert: is missing; for example cert: /etc/jobworker/tls/cert.pem
{0}: line 1: tls.key: is missing; for example key: /etc/jobworker/tls/key.pem
"""


def config_command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [os.path.join(BIN, "worker-agent"), "config", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_what_a_configuration_makes_is_shown_with_its_lines(tmp_path: object) -> None:
    config = os.path.join(str(tmp_path), "agent.yaml")
    with open(config, "w") as file:
        file.write(
            "state_dir: /s\nlisten: 127.0.0.1:1\ntls: {ca: /a, cert: /b, key: /c}\njobs:\n  max_cpu: 150%\n"
        )
    rows = dict[str, list[str]]()
    for line in config_command("show", config).stdout.splitlines():
        key, *rest = line.split()
        rows[key] = rest
    assert rows["listen"] == ["127.0.0.1:1", f"{config}:2"]
    assert rows["jobs.max_cpu"] == ["150%", f"{config}:5"]
    assert rows["jobs.max_pids"] == ["32768", "default"]
    assert rows["policy"] == ["(none)", "default"]
    told = json.loads(config_command("show", config, "--format", "json").stdout)
    assert told["jobs.max_cpu"] == {"value": "150%", "origin": f"{config}:5"}
    assert told["policy"] == {"value": None, "origin": "default"}
    assert told.keys() == rows.keys()


def test_the_gateway_may_die(own_agent: Agent) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    job_id = own_agent.start_job("--", "sh", "-c", script)
    with following(own_agent, job_id) as follower:
        assert follower.stdout
        first = follower.stdout.readline()
        for _ in range(2):
            os.kill(own_agent.pid("gateway"), signal.SIGKILL)
            # A new call is told at once that nobody listens; nothing tells it when somebody does again.
            while own_agent.cli("query", job_id).returncode:
                assert own_agent.process.poll() is None, own_agent.log()
        assert first + follower.stdout.read() == "".join(f"{i}\n" for i in range(300)).encode()
    assert own_agent.close() == 0
    until(lambda: processes_with(own_agent.directory), [])


def test_a_gateway_that_is_killed_before_it_serves_is_started_again(own_agent: Agent) -> None:
    first = own_agent.pid("gateway")
    os.kill(first, signal.SIGKILL)
    killed = {first}
    for _ in range(3):
        while not (fresh := set(own_agent.pids("gateway")) - killed):
            assert own_agent.process.poll() is None, own_agent.log()
        for pid in fresh:
            os.kill(pid, signal.SIGKILL)
        killed |= fresh
    until(lambda: own_agent.cli("list").returncode, 0, DEADLINE)


def test_a_gateway_comes_back_while_the_supervisor_is_away(own_agent: Agent) -> None:
    keeper = own_agent.pid("keeper")
    # Nobody starts another supervisor.
    os.kill(keeper, signal.SIGSTOP)
    try:
        for pid in (own_agent.pid("supervisor"), own_agent.pid("gateway")):
            kill(pid)
        host, _, port = own_agent.addr.rpartition(":")
        until(lambda: listens(host, int(port)), True, DEADLINE)
        assert own_agent.cli("list").returncode != 0
    finally:
        os.kill(keeper, signal.SIGCONT)
    until(lambda: own_agent.cli("list").returncode, 0, DEADLINE)
    assert own_agent.close() == 0


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), DEADLINE).close()
    except ConnectionError:
        return False
    return True


def is_pending(pid: int, signum: signal.Signals) -> bool:
    """Whether a process was sent a signal that it has not got yet (proc(5))."""
    with open(f"/proc/{pid}/status") as file:
        (pending,) = (line.split()[1] for line in file if line.startswith("ShdPnd:"))
    return bool(int(pending, 16) & 1 << (signum - 1))


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE)[0]
    finally:
        os.close(pidfd)


@pytest.mark.root
def test_jobs_cannot_read_what_the_agent_keeps(own_agent: Agent) -> None:
    keys = [os.path.join(own_agent.pki_dir, name) for name in ("ca.key", "server.key", "writer.key")]
    state = [os.path.join(own_agent.state_dir, name) for name in ("supervisor.sock", "lock", "instance", "jobs")]
    run = own_agent.cli("run", "--", "cat", *keys, *state)
    assert run.returncode == 1
    assert run.stdout == b""
    assert run.stderr.count(b"Permission denied") + run.stderr.count(b"No such device") >= len(keys) + 3


def test_what_the_host_does_not_limit_in_full_is_said_at_the_start(own_agent: Agent) -> None:
    limits = json.loads(own_agent.cli("info", "--format", "json", check=True).stdout)["limits"]
    words = {"BEST_EFFORT": "  limits in part only: ", "UNSUPPORTED": "  no limits: "}
    said = own_agent.log().splitlines()
    for enforcement, word in words.items():
        lacking = {name for name, limit in limits.items() if limit["enforcement"] == enforcement}
        told = [line.removeprefix(word).partition(": ") for line in said if line.startswith(word)]
        assert {name for names, _, _ in told for name in names.split(", ")} == lacking
        # Each reason once.
        reasons = [reason for _, _, reason in told]
        assert sorted(reasons) == sorted({limits[name]["detail"] for name in lacking})


def test_a_reason_for_many_things_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    limits = [LimitSupport(name, Enforcement.UNSUPPORTED, "no cgroup", "", "") for name in ("cpu", "memory")]
    parts = [PartSupport(part, "not as root") for part in (Part.PRIVATE_TMP, Part.OWN_PROCESSES)]
    dev._explain(replace(HOST, limits=(*limits,), isolation=(*parts, PartSupport(Part.SYSTEM_CALLS, ""))))
    told = "  no sandbox: private-tmp, own-processes: not as root\n  no limits: cpu, memory: no cgroup\n"
    assert capsys.readouterr().err == f"cgroups: none; jobs run as you\n{told}"

"""`--dry-run`: what would be started, by the very code that starts it, and nothing of it there afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import (
    AgentDraining,
    CapExceeded,
    IdempotencyConflict,
    InvalidField,
    JobWorkerError,
    LimitUnsupported,
    PolicyDenied,
)
from jobworker.jobs import Idempotency, JobRecord, JobSpec, State
from jobworker.limits import Enforcement, Limits
from jobworker.wire import messages
from jobworker.wire.callers import Caller
from support import trails
from support.agent import Agent
from support.callers import caller
from support.inventory import Hosts
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side

pytestmark = pytest.mark.root

LIMITS = "version: 1\nprofiles:\n  build: {cpu: 50%, memory: 128M}\n"
HELD = "spiffe://test/user/held"
POLICY = f"""\
version: 1
rules:
  - {{name: held, allow: [Start], principals: [{HELD}], commands: [[/bin/true]], limits: {{memory: 100M}}}}
  - {{name: not-secret, deny: [Start], labels: {{secret: "*"}}}}
  - {{name: users, allow: [Start], users: [own, daemon]}}
  - {{name: rest, allow: all}}
"""
SPEC = JobSpec("/bin/sleep", ("1000",), env=(("TOKEN", "hush"),), labels=(("team", "build"),), profile="build")


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    with fresh_root_side(limits=LIMITS, policy=POLICY, max_active=3) as running:
        yield running


def plan(link: Link, spec: JobSpec, who: Caller = CALLER, **more: Any) -> messages.StartPlanned:
    planned = link.ask(messages.StartJob(who, spec, dry_run=True, **more))
    assert isinstance(planned, messages.StartPlanned)
    return planned


def decided(record: JobRecord) -> tuple[Any, ...]:
    """All of a record that is decided before the launch."""
    given = record.command, record.args, record.env_names, record.labels, record.timeout_ms, record.user
    return *given, record.limits, record.sandbox, record.profile


def test_it_tells_what_a_start_makes_then(link: Link) -> None:
    planned = plan(link, SPEC)
    record = planned.record
    assert planned.rule == "users"
    assert (record.job_id, record.pid, record.state, record.created_ns) == ("", 0, State.PENDING, 0)
    asked = {status.name: status.requested for status in record.limits}
    assert (asked["cpu"], asked["memory"]) == ("50%", "128M")
    job = link.ask(messages.StartJob(CALLER, SPEC)).record
    assert decided(record) == decided(job)
    link.stop(job.job_id, force=True)


def test_the_rule_and_what_it_fills_in_are_told(link: Link) -> None:
    planned = plan(link, JobSpec("/bin/true"), caller(HELD))
    (memory,) = (status for status in planned.record.limits if status.name == "memory")
    assert (planned.rule, memory.value, memory.enforcement) == ("held", "100M", Enforcement.ENFORCED)


def test_nothing_stays(side: RootSide, link: Link) -> None:
    first = link.start("/bin/true")
    link.wait_ended(first.job_id)
    before = os.listdir(os.path.join(side.state_dir, "jobs"))
    for _ in range(5):
        plan(link, SPEC)
    assert os.listdir(os.path.join(side.state_dir, "jobs")) == before
    # The next job's user id is the next one, too.
    job = link.start("/bin/true")
    assert job.uid == first.uid + 1
    link.wait_ended(job.job_id)


REFUSED: list[tuple[JobSpec, type[JobWorkerError]]] = [
    (JobSpec("/bin/false", labels=(("secret", "x"),)), PolicyDenied),
    (JobSpec("/bin/true", sandbox="host"), PolicyDenied),
    (JobSpec("/bin/true", user="nobody"), PolicyDenied),
    (JobSpec("/bin/true", user="no-such-user"), PolicyDenied),
    (JobSpec("/bin/true", profile="huge"), InvalidField),
    (JobSpec("/bin/true", limits=Limits(pids=4_000_000)), InvalidField),
    (JobSpec(""), InvalidField),
]


@pytest.mark.parametrize(("spec", "error"), REFUSED)
def test_it_is_refused_as_a_start_is(link: Link, spec: JobSpec, error: type[JobWorkerError]) -> None:
    said = []
    for dry_run in (True, False):
        with pytest.raises(error) as caught:
            link.ask(messages.StartJob(CALLER, spec, dry_run=dry_run))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_limit_that_cannot_be_had_is_refused_or_told(link: Link) -> None:
    # What is on no disk has no limit of its own for one.
    spec = JobSpec("/bin/true", workdir="/proc", limits=Limits(io_read_bps=1 << 20))
    with pytest.raises(LimitUnsupported):
        plan(link, spec)
    best = JobSpec("/bin/true", workdir="/proc", limits=Limits(io_read_bps=1 << 20), best_effort=True)
    (told,) = (status for status in plan(link, best).record.limits if status.name == "io_read")
    assert (told.value, told.enforcement, bool(told.detail)) == ("", Enforcement.UNSUPPORTED, True)


def test_room_counts(link: Link) -> None:
    running = [link.start("/bin/sleep", "1000").job_id for _ in range(3)]
    with pytest.raises(CapExceeded):
        plan(link, SPEC)
    link.stop(running.pop(), force=True)
    # Asked any number of times, a plan takes no room.
    for _ in range(4):
        assert plan(link, SPEC).record.command == SPEC.command
    for job_id in running:
        link.stop(job_id, force=True)


def test_a_drained_agent_says_so(link: Link) -> None:
    link.ask(messages.Drain(CALLER, draining=True))
    try:
        with pytest.raises(AgentDraining):
            plan(link, SPEC)
    finally:
        link.ask(messages.Drain(CALLER, draining=False))


def test_a_key_that_has_its_job_tells_that(link: Link) -> None:
    key = Idempotency("key-1", "a digest")
    assert plan(link, JobSpec("/bin/true"), idempotency=key).record.job_id == ""
    job = link.ask(messages.StartJob(CALLER, JobSpec("/bin/true"), key)).record
    assert plan(link, JobSpec("/bin/true"), idempotency=key).record.job_id == job.job_id
    with pytest.raises(IdempotencyConflict):
        plan(link, JobSpec("/bin/true"), idempotency=Idempotency("key-1", "another"))


def test_a_user_of_the_host_is_told(link: Link) -> None:
    record = plan(link, JobSpec("/bin/true", user="daemon")).record
    assert (record.user, record.uid) == ("daemon", 1)


def test_it_is_on_record_as_what_it_is(side: RootSide, link: Link) -> None:
    plan(link, SPEC)
    with pytest.raises(PolicyDenied):
        plan(link, JobSpec("/bin/false", ("--dry",), labels=(("secret", "x"),)))
    link.ask(messages.InspectJob(link.start("/bin/true").job_id))
    calls = trails.events(side.state_dir, "calls")
    planned = [event for event in calls if event["event"] == "start_planned"][-1]
    refused = [event for event in calls if event["event"] == "start_refused" and event.get("args") == ["--dry"]]
    assert (planned["rule"], planned["dry_run"], planned["env"]) == ("users", True, ["TOKEN"])
    assert [event["dry_run"] for event in refused] == [True]
    assert "hush" not in json.dumps(calls)


# As users see it.


def test_start_shows_what_it_would_do(agent: Agent) -> None:
    before = listed(agent)
    done = agent.cli(
        "start", "--dry-run", "--memory", "64M", "--label", "a=b", "--", "echo", "two words", check=True
    )
    text = done.stdout.decode()
    assert "would start  echo 'two words'\nallowed by   rule roles\n" in text
    assert "labels       a=b\n" in text
    assert "user         one of its own\n" in text
    assert "memory 64M ENFORCED" in text
    assert listed(agent) == before


def test_json_has_the_whole_job(agent: Agent) -> None:
    done = agent.cli("start", "--dry-run", "--format", "json", "--timeout", "10s", "--", "true", check=True)
    told = json.loads(done.stdout)
    job = told.pop("job")
    assert told == {"dry_run": True, "rule": "roles"}
    assert (job["id"], job["command"], job["timeout_seconds"]) == ("", "true", 10)
    assert job["limits"]["pids"]["enforcement"] == "ENFORCED"


def test_run_does_not_run_either(agent: Agent) -> None:
    done = agent.cli("run", "--dry-run", "--", "sh", "-c", "echo ran; exit 3")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, b"would start  sh -c 'echo ran; exit 3'")


def listed(agent: Agent) -> list[str]:
    """The ids of all jobs; how old they are is another with each look."""
    lines = agent.cli("list", "--format", "json", check=True).stdout.splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_what_would_be_refused_exits_as_a_start_does(agent: Agent) -> None:
    for command, code in (("start", 4), ("run", 125)):
        done = agent.cli(command, "--dry-run", "--", "true", role="reader")
        assert (done.returncode, done.stdout) == (code, b"")
        assert b"needs the role WRITER" in done.stderr
    done = agent.cli("start", "--dry-run", "--profile", "none-such", "--", "true")
    assert (done.returncode, b"is not a profile of limits" in done.stderr) == (2, True)


def test_a_fleet_tells_each_hosts_plan(agent: Agent, tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, {"one": agent.addr, "two": agent.addr})
    before = listed(agent)
    for command in ("start", "run"):
        done = hosts.cli("--group", "web", command, "--dry-run", "--pids", "9", "--", "true")
        assert done.returncode == 0, done.stderr
        lines = sorted(done.stdout.splitlines())
        assert [line.partition(", pids 9 ENFORCED")[0] for line in lines] == [
            "one: would start",
            "two: would start",
        ]
        assert all(line.endswith("; allowed by rule roles") for line in lines)
    events = [
        json.loads(line)
        for line in hosts.cli(
            "--group", "web", "start", "--dry-run", "--format", "json", "true"
        ).stdout.splitlines()
    ]
    assert {event["host"] for event in events if event["type"] == "plan" and event["rule"] == "roles"} == {
        "one",
        "two",
    }
    assert listed(agent) == before

"""What `worker-client doctor` makes of what an agent tells of itself."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc
import pytest

import jobworker
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted


def good(**fields: Any) -> pb.GetAgentInfoResponse:
    """What an agent tells with which all is well, but for these fields."""
    info = pb.GetAgentInfoResponse(
        version=jobworker.__version__,
        hostname="build7",
        cgroup_mode="v2",
        limits=[pb.LimitSupport(name="cpu", enforcement=job_pb2.ENFORCEMENT_ENFORCED)],
        max_active_jobs=10,
        user_per_job=True,
        default_sandbox="standard",
    )
    info.time.FromNanoseconds(time.time_ns())
    info.certificate_expires_at.FromSeconds(int(time.time()) + 30 * 86_400)
    info.MergeFrom(pb.GetAgentInfoResponse(**fields))
    return info


def told(agent: scripted.ScriptedAgent, info: pb.GetAgentInfoResponse) -> dict[str, str]:
    """The checks that come to something other than ok, with their sentences."""
    agent.handlers["GetAgentInfo"] = lambda _request, _context: info
    done = agent.cli("doctor", "--format", "json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b""), done.stdout
    return {each["check"]: f"{each['told']}; {each['hint']}" for each in found if each["level"] != "ok"}


def test_a_good_agent_is_not_warned_of(agent: scripted.ScriptedAgent) -> None:
    assert told(agent, good()) == {}


def test_what_an_agent_lacks_is_told(agent: scripted.ScriptedAgent) -> None:
    unsupported = [
        pb.LimitSupport(name=name, enforcement=job_pb2.ENFORCEMENT_UNSUPPORTED, detail="no cgroup is delegated")
        for name in ("memory", "pids")
    ]
    parts = [pb.SandboxPart(name="landlock", missing_because="EOPNOTSUPP")]
    found = told(agent, good(limits=unsupported, sandbox_parts=parts))
    assert found["limits"].startswith("cannot be set (cgroups: v2): memory, pids: no cgroup is delegated; ")
    assert found["sandbox"].startswith("cannot be applied: landlock: EOPNOTSUPP; ")
    assert found.keys() == {"limits", "sandbox"}


def test_an_agent_that_takes_no_jobs_is_told(agent: scripted.ScriptedAgent) -> None:
    assert told(agent, good(draining=True)) == {
        "jobs": "it takes no new jobs, since it was drained; worker-client undrain"
    }
    assert "10 active of at most 10" in told(agent, good(active_jobs=10))["jobs"]


def test_another_version_and_a_shared_user_are_told(agent: scripted.ScriptedAgent) -> None:
    info = good(version="9.9.9")
    info.user_per_job = False
    found = told(agent, info)
    assert "version 9.9.9 on build7" in found["agent"]
    assert "run the agent as root" in found["users"]


def test_an_agent_of_two_versions_is_told(agent: scripted.ScriptedAgent) -> None:
    found = told(agent, good(version=jobworker.__version__, supervisor_version="0.0.9"))
    assert f"version {jobworker.__version__}, its supervisor 0.0.9" in found["agent"]
    assert "reload jobworker-keeper" in found["agent"]


@pytest.mark.parametrize(("seconds", "way"), [(100, "ahead of"), (-100, "behind")])
def test_clocks_that_differ_are_told(agent: scripted.ScriptedAgent, seconds: int, way: str) -> None:
    info = good()
    info.time.FromSeconds(int(time.time()) + seconds)
    assert f"s {way} this host's; have both hosts keep time" in told(agent, info)["clock"]


def test_what_ends_soon_is_told(agent: scripted.ScriptedAgent) -> None:
    info = good()
    info.certificate_expires_at.FromSeconds(int(time.time()) + 3700)
    info.crl_expires_at.FromSeconds(int(time.time()) - 10)
    found = told(agent, info)
    assert "in 1h; have it renewed" in found["agent cert"]
    assert "the first of its revocation lists ended at 2" in found["agent crl"]


def test_a_file_that_cannot_be_used_is_told(agent: scripted.ScriptedAgent) -> None:
    info = good()
    info.stale_files.add(what="policy", problem="line 3: rules[0].allow: must be a list")
    found = told(agent, info)["stale"]
    assert "the file of the policy has changed, and cannot be used: line 3: rules[0].allow" in found
    assert "what was good before it is in force until then" in found


def test_an_older_agent_that_tells_less_is_no_mistake(agent: scripted.ScriptedAgent) -> None:
    info = good()
    for field in ("time", "certificate_expires_at"):
        info.ClearField(field)
    assert told(agent, info) == {}


def test_an_agent_whose_policy_hides_it_is_a_warning(agent: scripted.ScriptedAgent) -> None:
    def deny(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "PERMISSION_DENIED", "POLICY_DENIED", "the policy denies it")

    agent.handlers["GetAgentInfo"] = deny
    done = agent.cli("doctor")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        b"\nwarn  agent        it lets you in, and does not tell of itself: the policy denies it; " in done.stdout
    )


def test_an_agent_that_cannot_tell_is_a_failure(agent: scripted.ScriptedAgent) -> None:
    def fail(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "INTERNAL", "HOST_FAULT", "the disk is gone")

    agent.handlers["GetAgentInfo"] = fail
    done = agent.cli("--request-id", "r1", "doctor")
    assert done.returncode == 1
    assert b"\nFAIL  agent        the disk is gone (request r1); look at its log" in done.stdout


def test_nothing_that_an_agent_tells_controls_the_terminal(agent: scripted.ScriptedAgent) -> None:
    info = good(hostname="h\x1b]0;owned\x07\n", cgroup_mode="\x1b[2J")
    agent.handlers["GetAgentInfo"] = lambda _request, _context: info
    for line in agent.cli("doctor").stdout.decode().splitlines():
        assert line.isprintable()

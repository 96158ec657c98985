"""Profiles of limits and new limits over the contract, with a real supervisor behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import gateway
from support.agent import Agent, running_agent
from support.root_side import RootSide, own_uids, root_side

pytestmark = pytest.mark.root

Stub = JobWorkerServiceStub
FILE = "version: 1\ndefault: small\nprofiles: {small: {pids: 64}, build: {memory: 128M, cpu_weight: 50}}\n"
# The rule asks for what the profile gives: only root can tell that it is asked for.
POLICY = """\
version: 1
rules:
  - {name: start, allow: [Start], limits: {memory: {max: 200M, required: true}}}
  - {name: rest, allow: all}
"""


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RootSide]:
    with root_side(str(tmp_path_factory.mktemp("root")), limits=FILE, policy=POLICY) as running:
        yield running


def start(stub: Stub, *command: str, **fields: Any) -> job_pb2.Job:
    return stub.Start(pb.StartRequest(command=command[0], args=command[1:], **fields)).job


def values(job: job_pb2.Job) -> dict[str, str]:
    return {limit.name: limit.value for limit in job.limits}


def refused(call: Any, request: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value


def test_a_job_by_its_profile(stub: Stub) -> None:
    job = start(stub, "sleep", "1000", profile="build")
    assert (job.profile, values(job)["memory"], values(job)["cpu_weight"]) == ("build", "128M", "50")
    assert stub.Query(pb.QueryRequest(job_id=job.id)).job.profile == "build"
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_a_profile_that_is_not_there(stub: Stub) -> None:
    error = refused(
        stub.Start, pb.StartRequest(command="true", profile="huge", limits=job_pb2.Limits(memory="64M"))
    )
    assert (gateway.code(error), gateway.reason(error)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    (violation,) = gateway.detail(error, error_details_pb2.BadRequest()).field_violations
    assert violation.field == "profile"
    assert "there are small, build" in violation.description


def test_what_is_required_is_not_left_out(stub: Stub) -> None:
    for profile in ("", "small"):
        error = refused(stub.Start, pb.StartRequest(command="true", profile=profile))
        assert gateway.reason(error) == "POLICY_DENIED"


def test_profiles_are_told_as_they_are_now(stub: Stub, side: RootSide) -> None:
    def told() -> dict[str, tuple[bool, job_pb2.Limits]]:
        info = stub.GetAgentInfo(pb.GetAgentInfoRequest())
        return {profile.name: (profile.is_default, profile.limits) for profile in info.limit_profiles}

    assert told() == {
        "small": (True, job_pb2.Limits(pids=64)),
        "build": (False, job_pb2.Limits(memory="128M", cpu_weight=50)),
    }
    try:
        side.write_limits("version: 1\nprofiles: {other: {pids: 1}}\n")
        assert told() == {"other": (False, job_pb2.Limits(pids=1))}
    finally:
        side.write_limits(FILE)
    assert "small" in told()


def test_an_update(stub: Stub) -> None:
    job = start(stub, "sleep", "1000", limits=job_pb2.Limits(memory="64M"))
    after = stub.Update(pb.UpdateRequest(job_id=job.id, limits=job_pb2.Limits(memory="100M", pids=10))).job
    assert values(after) == {"memory": "100M", "pids": "10"}
    assert values(stub.Query(pb.QueryRequest(job_id=job.id)).job) == values(after)
    error = refused(stub.Update, pb.UpdateRequest(job_id=job.id, limits=job_pb2.Limits(memory="201M")))
    assert (gateway.code(error), gateway.reason(error)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    error = refused(stub.Update, pb.UpdateRequest(job_id=job.id))
    assert (gateway.code(error), gateway.reason(error)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    error = refused(stub.Update, pb.UpdateRequest(job_id=job.id, limits=job_pb2.Limits(cpu="50")))
    assert gateway.detail(error, error_details_pb2.BadRequest()).field_violations[0].field == "limits.cpu"
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))
    error = refused(stub.Update, pb.UpdateRequest(job_id=job.id, limits=job_pb2.Limits(pids=1)))
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "JOB_ALREADY_ENDED")


def test_less_memory_than_is_used(stub: Stub) -> None:
    script = f"data = bytearray(b'x') * {50 << 20}; print('there', flush=True); import time; time.sleep(1000)"
    job = start(stub, "python3", "-I", "-S", "-c", script, limits=job_pb2.Limits(memory="100M"))
    next(stub.Stream(pb.StreamRequest(job_id=job.id, follow=True)))
    error = refused(stub.Update, pb.UpdateRequest(job_id=job.id, limits=job_pb2.Limits(memory="20M")))
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "LIMIT_REFUSED")
    assert gateway.detail(error, error_details_pb2.ErrorInfo()).metadata["limit"] == "memory"
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


# As users have it.


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Path]]:
    path = tmp_path_factory.mktemp("limits") / "limits.yaml"
    path.write_text(FILE)
    settings = f"jobs: {{first_uid: {own_uids()}}}\nisolation: {{missing: report}}\nlimits: {path}\n"
    settings += "metrics: {listen: 127.0.0.1:0, plain_http: true}\n"
    with running_agent(settings) as agent:
        yield agent, path


def test_the_commands(limited: tuple[Agent, Path]) -> None:
    agent, _ = limited
    job = agent.start_job("--profile", "build", "--memory", "64M", "sleep", "1000")
    told = agent.query(job)
    assert (told["profile"], told["limits"]["memory"]["value"]) == ("build", "64M")
    assert "profile      build" in agent.cli("query", job).stdout.decode()
    agent.cli("stop", job, "--force", check=True)
    assert agent.cli("run", "--", "true").returncode == 0
    info = agent.cli("info").stdout.decode()
    assert "small (default): pids 64" in info
    assert "build: memory 128M, cpu_weight 50" in info
    unknown = agent.cli("start", "--profile", "huge", "true")
    assert (unknown.returncode, b"there are small, build" in unknown.stderr) == (2, True)


def test_a_stale_file_is_a_metric(limited: tuple[Agent, Path]) -> None:
    agent, path = limited
    path.write_text("version: 2\n")
    agent.cli("info", check=True)
    assert gateway.metrics(agent)["jobworker_limits_stale"] == 1
    path.write_text(FILE)
    agent.cli("info", check=True)
    assert gateway.metrics(agent)["jobworker_limits_stale"] == 0

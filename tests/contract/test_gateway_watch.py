"""Watch over mutual TLS, with a supervisor behind the gateway that says what it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway.watch import token
from jobworker.jobs import State
from jobworker.wire.messages import JobChanged, JobRemoved
from support import gateway
from support.scripted_supervisor import ScriptedSupervisor, job_id, record


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[ScriptedSupervisor]:
    running = ScriptedSupervisor(str(tmp_path))
    running.records = [record(1, revision=5)]
    yield running
    running.close()


@pytest.fixture
def stub(tmp_path: Path, supervisor: ScriptedSupervisor) -> Iterator[JobWorkerServiceStub]:
    with gateway.gateway(tmp_path) as running, running.stub(name="reader") as connected:
        assert supervisor.connected.wait(30)
        yield connected


def refused(stub: JobWorkerServiceStub, **fields: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(pb.WatchRequest(**fields)))
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"job_ids": [job_id(1), "../x"]}, "job_ids[1]"),
        ({"job_ids": [job_id(i) for i in range(201)]}, "job_ids"),
        ({"states": [77]}, "states"),
        ({"labels": {str(i): "" for i in range(33)}}, "labels"),
        ({"principal": "x" * 401}, "principal"),
        ({"resume_token": "nonsense"}, "resume_token"),
        ({"resume_token": token("", 3), "snapshot": True}, "snapshot"),
    ],
)
def test_a_request_that_makes_no_sense(stub: JobWorkerServiceStub, fields: dict[str, Any], field: str) -> None:
    error = refused(stub, **fields)
    assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", field)


def test_a_token_from_another_time(stub: JobWorkerServiceStub) -> None:
    error = refused(stub, resume_token=token("another", 3))
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "WATCH_EXPIRED")
    assert "watch again with a snapshot" in error.details()


def test_snapshot_changes_and_removal(stub: JobWorkerServiceStub, supervisor: ScriptedSupervisor) -> None:
    watch = stub.Watch(pb.WatchRequest(snapshot=True))
    first, mark = next(watch), next(watch)
    assert (first.job.id, first.resume_token) == (job_id(1), "")
    assert mark == pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=True), resume_token=token("", 5))
    supervisor.tell(JobChanged(record(1, revision=9, state=State.ENDED)))
    ended = next(watch)
    assert (ended.job.state, ended.resume_token) == (job_pb2.JOB_STATE_ENDED, token("", 9))
    supervisor.tell(JobRemoved(job_id(1), 10))
    assert next(watch) == pb.WatchResponse(removed_job_id=job_id(1), resume_token=token("", 10))
    watch.cancel()


def test_a_supervisor_that_is_gone_ends_a_watch_with_the_token(
    stub: JobWorkerServiceStub, supervisor: ScriptedSupervisor
) -> None:
    watch = stub.Watch(pb.WatchRequest())
    told = next(watch).resume_token
    supervisor.handlers[type(supervisor.requests[0])] = lambda _: None
    supervisor.drop()
    with pytest.raises(grpc.RpcError) as caught:
        next(watch)
    assert (gateway.code(caught.value), gateway.reason(caught.value)) == ("UNAVAILABLE", "AGENT_UNAVAILABLE")
    assert dict(watch.trailing_metadata())["jobworker-resume-token"] == told

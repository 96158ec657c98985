"""A request is called the same by its client, by the agent's log and audit trail, and in the job's record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.client import Endpoint, connect
from jobworker.client.failures import CallFailed
from jobworker.errors import InvalidField
from jobworker.jobs import JobSpec
from jobworker.wire import messages
from jobworker.wire.callers import Caller
from support.agent import DEADLINE, Agent, running_agent
from support.link import CALLER
from support.root_side import fresh_root_side
from support.trails import events
from support.waiting import until

KEY = "x-request-id"
ID = "deploy-2041:step/3@ci+x=_.Z"


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with running_agent() as running:
        yield running


@pytest.fixture(scope="module")
def stub(agent: Agent) -> Iterator[JobWorkerServiceStub]:
    ca, key, cert = (Path(agent.pki_dir, name).read_bytes() for name in ("ca.pem", "writer.key", "writer.pem"))
    with grpc.secure_channel(agent.addr, grpc.ssl_channel_credentials(ca, key, cert)) as channel:
        yield JobWorkerServiceStub(channel)


def logged(agent: Agent, request_id: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in agent.log().splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("request") == request_id]


def test_the_clients_own_goes_all_the_way(agent: Agent) -> None:
    job = agent.start_job("--request-id", ID, "true")
    assert agent.query(job)["request_id"] == ID
    until(lambda: {line["event"] for line in logged(agent, ID)}, {"call", "job started"}, DEADLINE)
    (started,) = [line for line in events(agent.state_dir, "jobs") if line.get("claimed", {}).get("request")]
    assert (started["job"], started["claimed"]["request"]) == (job, ID)

    def of_the_gateway() -> list[str]:
        return [line["rpc"] for line in events(agent.state_dir, "calls") if line.get("request") == ID]

    until(lambda: [rpc.rpartition("/")[2] for rpc in of_the_gateway()], ["Start"], DEADLINE)
    text = agent.cli("query", job, check=True).stdout.decode()
    assert ["request", ID] in [line.split() for line in text.splitlines()]


def trailers(call: Any) -> dict[str, str]:
    return dict(call.trailing_metadata())


def test_it_is_answered(stub: JobWorkerServiceStub) -> None:
    _, call = stub.GetAgentInfo.with_call(pb.GetAgentInfoRequest(), metadata=((KEY, ID),))
    assert trailers(call)[KEY] == ID
    stream = stub.Stream(pb.StreamRequest(job_id="none"), metadata=((KEY, ID),))
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert trailers(stream)[KEY] == ID


def test_a_stream_says_where_to_go_on_as_well(agent: Agent, stub: JobWorkerServiceStub) -> None:
    job = agent.start_job("echo", "hello")
    stream = stub.Stream(pb.StreamRequest(job_id=job, follow=True), metadata=((KEY, ID),))
    list(stream)
    told = trailers(stream)
    assert (told[KEY], told["jobworker-resume-offset"]) == (ID, "6")


def test_the_agent_makes_one_where_there_is_none(agent: Agent, stub: JobWorkerServiceStub) -> None:
    response, call = stub.Start.with_call(pb.StartRequest(command="true"))
    named = trailers(call)[KEY]
    assert response.job.request_id == named
    until(lambda: [line["call"] for line in logged(agent, named) if line["event"] == "call"], [named], DEADLINE)


@pytest.mark.parametrize("wrong", ["x" * 129, "a b", 'a"b', "a\\b", "{}", "a,b"])
def test_what_is_none_is_refused_and_not_told(agent: Agent, stub: JobWorkerServiceStub, wrong: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetAgentInfo(pb.GetAgentInfoRequest(), metadata=((KEY, wrong),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "x-request-id: must be 1 to 128 letters, digits and characters of ._:+/=@-; for example deploy-2041-step-3"
    )
    named = trailers(caught.value)[KEY]
    assert wrong not in named
    until(lambda: [line["code"] for line in logged(agent, named)], ["INVALID_ARGUMENT"], DEADLINE)
    assert json.dumps(wrong) not in agent.log()


def test_who_is_not_let_in_is_given_one_too(agent: Agent) -> None:
    refused = agent.cli("start", "--request-id", "by-reader", "true", role="reader")
    assert refused.returncode == 4
    (line,) = logged(agent, "by-reader")
    assert (line["code"], line["level"]) == ("PERMISSION_DENIED", "warning")


def client_files(agent: Agent) -> Endpoint:
    paths = (os.path.join(agent.pki_dir, name) for name in ("ca.pem", "writer.pem", "writer.key"))
    return Endpoint(agent.addr, *paths)


def test_each_call_of_the_library_has_one_of_its_own(agent: Agent) -> None:
    with connect(client_files(agent)) as client:
        first, second = client.start(JobSpec("true")), client.start(JobSpec("true"))
        assert len({first.request_id, second.request_id}) == 2
        with pytest.raises(CallFailed) as caught:
            client.stop(first.id[:-1] + ("0" if first.id[-1] != "0" else "1"))
        assert [line["method"].rpartition("/")[2] for line in logged(agent, caught.value.request_id)] == ["Stop"]
    with connect(client_files(agent), request_id=ID) as client:
        assert client.start(JobSpec("true")).request_id == client.start(JobSpec("true")).request_id == ID
    with pytest.raises(InvalidField, match="request_id"):
        connect(client_files(agent), request_id="a b")


def test_the_command_line_takes_one_from_the_environment(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBWORKER_REQUEST_ID", "of-the-pipeline")
    assert agent.query(agent.start_job("true"))["request_id"] == "of-the-pipeline"
    assert agent.query(agent.start_job("--request-id", "own", "true"))["request_id"] == "own"
    monkeypatch.setenv("JOBWORKER_REQUEST_ID", "a b")
    refused = agent.cli("list")
    assert (refused.returncode, refused.stderr.decode().partition(":")[2].strip().split(":")[0]) == (
        2,
        "JOBWORKER_REQUEST_ID",
    )


def test_root_takes_nobodys_word_for_what_one_is() -> None:
    with fresh_root_side() as side:
        link = side.link()
        caller = Caller(CALLER.principal, CALLER.role, request="a b")
        with pytest.raises(InvalidField, match="request"):
            link.ask(messages.StartJob(caller, JobSpec("/bin/true")))

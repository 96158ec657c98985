"""What the client makes of calls that are refused by a quota."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import connect
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.client import Client
from jobworker.client.rpc.retries import Retries
from jobworker.jobs import JobSpec
from support import scripted

ID = "k7f3-9m2q-x4tz-b1cd"


def refusing(agent: scripted.ScriptedAgent, times: int, answer: Any, retry_ms: int = 20) -> scripted.Handler:
    def handle(_request: Any, context: grpc.ServicerContext) -> Any:
        if len(agent.requests) <= times:
            scripted.refuse_quota(context, "you have too much", retry_ms)
        return answer

    return handle


def test_what_was_not_done_is_tried_again_when_the_agent_says(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    """Whatever it is: a Start without a key is not made twice by that."""
    agent.handlers["Start"] = refusing(agent, 3, pb.StartResponse(job=job_pb2.Job(id=ID)))
    assert client.start(JobSpec("ls")).id == ID
    assert len(agent.requests) == 4


def test_so_is_a_stream(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["Stream"] = refusing(agent, 2, iter([scripted.chunk(0, b"abc"), scripted.end(3)]))
    assert b"".join(getattr(item, "data", b"") for item in client.stream(ID)) == b"abc"
    assert len(agent.requests) == 3


@pytest.mark.parametrize("retry_ms", [0, 60_000])
def test_what_will_not_change_soon_is_told_at_once(agent: scripted.ScriptedAgent, retry_ms: int) -> None:
    agent.handlers["Start"] = agent.handlers["Query"] = refusing(agent, 9, None, retry_ms)
    with connect(agent.endpoint(), timeout=20) as client:
        with pytest.raises(CallFailed) as start:
            client.start(JobSpec("ls"))
        with pytest.raises(CallFailed) as query:
            client.query(ID)
    for failure in (start.value, query.value):
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert failure.metadata == {"quota": "calls", "limit": "1", "present": "1", "retry_ms": str(retry_ms)}
        assert failure.retry_seconds == retry_ms / 1000
    assert len(agent.requests) == 2


def test_it_is_not_tried_for_ever(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["Query"] = refusing(agent, 99, None, retry_ms=1)
    with pytest.raises(CallFailed, match="too much"):
        client.query(ID)
    assert len(agent.requests) == 9


@pytest.mark.parametrize("seconds", [61.0, 1e9, 1e17])
def test_no_agent_says_how_long_a_program_stands_still(seconds: float) -> None:
    failure = CallFailed("RESOURCE_EXHAUSTED", "", "QUOTA_EXCEEDED", retry_seconds=seconds)
    assert 60 <= Retries().pause(failure) <= 61


def test_the_command_line_says_it_in_a_sentence(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Start"] = refusing(agent, 99, None, retry_ms=0)
    done = agent.cli("start", "ls")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"worker-client: you have too much\n"

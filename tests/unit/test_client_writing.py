"""An answer to the end of a job's input that is lost, for both clients, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import aio, connect
from jobworker.client.rpc.upload import Written
from support import scripted

ID = "k7f3-9m2q-x4tz-b1cd"


def write_in_a_thread(agent: scripted.ScriptedAgent) -> Written:
    with connect(agent.endpoint()) as client:
        return client.write_stdin(ID, [b"data"])


def write_in_a_loop(agent: scripted.ScriptedAgent) -> Written:
    async def write() -> Written:
        async with aio.connect(agent.endpoint()) as client:
            return await client.write_stdin(ID, [b"data"])

    return asyncio.run(write())


@pytest.mark.parametrize("write", [write_in_a_thread, write_in_a_loop])
def test_who_is_told_that_all_was_taken_calls_no_more(
    agent: scripted.ScriptedAgent, write: Callable[[scripted.ScriptedAgent], Written]
) -> None:
    calls: list[int] = []

    def take(
        messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.WriteStdinResponse]:
        calls.append(len(calls))
        next(messages)
        if len(calls) == 1:
            yield pb.WriteStdinResponse(taken=0)
            while not next(messages).end:
                pass
            scripted.fail(context, "UNAVAILABLE", "", "the gateway died")
        scripted.fail(context, "FAILED_PRECONDITION", "STDIN_ENDED", "ended", taken="4")

    agent.handlers["WriteStdin"] = take
    assert write(agent) == Written(4, ended=True)
    assert calls == [0, 1]

"""A process that is forked from one with a client: grpc would hang there, so nothing is asked of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted

_COMMON = """
import asyncio, multiprocessing, os, sys
from jobworker.client import Endpoint, aio, connect
from jobworker.errors import JobWorkerError

endpoint = Endpoint(*sys.argv[1:])

def in_child(name, act):
    def tell():
        try:
            act()
        except JobWorkerError as error:
            print(name, type(error).__name__, error, flush=True)
        else:
            print(name, "done", flush=True)

    child = multiprocessing.get_context("fork").Process(target=tell)
    child.start()
    child.join(20)
    child.kill()

def ask_anew():
    with connect(endpoint) as client:
        client.agent_info()

async def ask_anew_in_a_loop():
    async with aio.connect(endpoint) as client:
        await client.agent_info()

def asked_in_a_loop():
    asyncio.run(ask_anew_in_a_loop())
"""

_SYNC = """
import jobworker.client.rpc.client
in_child("first", ask_anew)
client = connect(endpoint)
client.agent_info()
in_child("call", client.agent_info)
in_child("stream", lambda: next(client.watch()))
in_child("new", ask_anew)
in_child("loop", asked_in_a_loop)
in_child("close", client.close)
client.agent_info()
print("parent done")
"""

_AIO = """
import jobworker.client.aio.client
in_child("first", asked_in_a_loop)

def driven(awaited):
    return lambda: awaited.send(None)

async def parent():
    async with aio.connect(endpoint) as client:
        await client.agent_info()
        in_child("call", driven(client.agent_info()))
        in_child("stream", driven(anext(client.watch()).__await__()))
        in_child("new", ask_anew)
        in_child("loop", asked_in_a_loop)
        await client.agent_info()

asyncio.run(parent())
print("parent done")
"""


@pytest.mark.parametrize("script", [_SYNC, _AIO])
def test_a_forked_process_is_told_at_once(agent: scripted.ScriptedAgent, tmp_path: Path, script: str) -> None:
    agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse()
    (tmp_path / "program.py").write_text(_COMMON + script)
    it = agent.endpoint()
    command = [sys.executable, str(tmp_path / "program.py"), it.addr, it.ca, it.cert, it.key]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    first, *told, last = run.stdout.splitlines() or ["", ""]
    assert (first, last) == ("first done", "parent done"), run.stderr
    closed = ["close done"] if script is _SYNC else []
    assert [line for line in told if line.endswith(" done")] == closed
    refusals = [line.split(maxsplit=2) for line in told if line not in closed]
    assert [(name, kind) for name, kind, _ in refusals] == [
        (name, "ForkedClient") for name in ("call", "stream", "new", "loop")
    ]
    assert all("`spawn` or `forkserver`" in sentence for *_, sentence in refusals)

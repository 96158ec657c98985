"""What one client can do to the others by doing much: nothing but take up time."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs, gateway
from support.flood import flood
from support.scripted_supervisor import job_id
from support.waiting import until

# A flood takes what time there is, and each of these waits its turn.
pytestmark = pytest.mark.timeout(300)

CALLS = 30
SILENT = 2_000
MIB = 1024
QUERY = pb.QueryRequest(job_id=job_id(1))
STOP = pb.StopRequest(job_id=job_id(1), no_wait=True)
CHECK = health_pb2.HealthCheckRequest()


def answered(call: Callable[[Any], Message], request: Message) -> str:
    """Call so many times; each is answered. How long that took, for people to read."""
    took = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call(request)
        took.append((time.perf_counter() - begun) * 1000)
    took.sort()
    return f"p50 {took[CALLS // 2]:.1f} ms, at the most {took[-1]:.1f} ms"


def everybody_is_answered(served: gateway.Gateway, printout: list[str], beside: str) -> None:
    """Another's Query, and of the writer itself Stop and health."""
    with served.stub(name="reader") as other, served.channel() as own, served.stub() as stub:
        health = health_pb2_grpc.HealthStub(own)
        printout.append(f"beside {beside}:")
        printout.append(f"  another's Query: {answered(other.Query, QUERY)}")
        printout.append(f"  its own Stop:    {answered(stub.Stop, STOP)}")
        printout.append(f"  its own health:  {answered(health.Check, CHECK)}")


def test_silent_connections_and_handshakes(served: gateway.Gateway, printout: list[str]) -> None:
    before, files = served.memory_kib(), certs.dev_pki().files("writer")
    with flood(served.address, files, connections=4, silent=SILENT) as flooding:
        everybody_is_answered(served, printout, f"{SILENT} silent connections and a loop of handshakes")
    grown = served.memory_kib("VmHWM") - before
    printout.append(f"  the flood:       {flooding.counts}; {grown // MIB} MiB more memory at the most")
    assert flooding.counts["OK"] > 0
    assert grown < 200 * MIB


def test_without_a_file_to_spare_who_is_connected_is_answered(served: gateway.Gateway) -> None:
    """And whoever comes later is, when there are some again."""
    host, _, port = served.address.rpartition(":")
    with served.stub(name="reader") as before:
        before.Query(QUERY)
        spare = len(served.open_files()) + 20
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (spare, spare))
        with contextlib.ExitStack() as held:
            for _ in range(100):
                held.enter_context(socket.create_connection((host, int(port)), gateway.DEADLINE))
            until(lambda: len(served.open_files()) >= spare - 2, True)
            assert before.Query(QUERY).job.id == job_id(1)
        with served.stub() as later:
            assert later.Query(QUERY, timeout=gateway.DEADLINE).job.id == job_id(1)

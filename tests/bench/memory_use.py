"""What the agent's processes hold of memory, at rest and for each job and stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import astuple, fields

import grpc

from bench import agents, fanout
from bench.processes import Memory, Parts, memory, parts
from bench.report import Figure, Outcome, Table, below
from bench.scale import Scale
from bench.stream_rate import STREAM
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway.output import CHUNK_BYTES
from support.agent import Agent

_ROOT_SIDE_MIB, _JOB_KIB, _GATEWAY_MIB, _STREAM_KIB = 25, 10, 60, 100
# Two messages: grpc has a copy of the one that it can't send.
_STALLED_KIB = 640
_PARTS = tuple(field.name for field in fields(Parts))

# By part.
Snapshot = dict[str, Memory]


def measure(scale: Scale) -> Outcome:
    with agents.running() as agent, agents.stub(agent) as service:
        rest = _snapshot(agent)
        # The first job pays for what all share.
        job = agents.start_jobs(service, agents.QUIET, 1)[0]
        before_jobs = _snapshot(agent)
        agents.start_jobs(service, agents.QUIET, scale.quiet_jobs)
        before_streams = _snapshot(agent)
        with _idle_streams(service, job.id, scale.followers):
            streaming = _snapshot(agent)
        flood = agents.wait_ended(service, _flood(service, scale.followers))
        before_stalls = _snapshot(agent)
        with _stalled_streams(agent, flood.id, scale.followers):
            stalling = _snapshot(agent)
    with agents.running(scale.ended_jobs) as agent, agents.stub(agent) as service:
        agents.seconds_to_list(service)
        ended = _snapshot(agent)
    each = {
        f"running job (of {scale.quiet_jobs})": _each(before_jobs, before_streams, scale.quiet_jobs),
        f"ended job (of {scale.ended_jobs})": _each(rest, ended, scale.ended_jobs),
        f"idle stream (of {scale.followers})": _each(before_streams, streaming, scale.followers),
        f"stalled stream (of {scale.followers})": _each(before_stalls, stalling, scale.followers),
    }
    return Outcome((_at_rest(rest), _for_each(each)), _figures(rest, each))


def _snapshot(agent: Agent) -> Snapshot:
    return dict(zip(_PARTS, map(memory, astuple(parts(agent))), strict=True))


def _each(before: Snapshot, after: Snapshot, count: int) -> dict[str, float]:
    """KiB of RSS that one of so many has added, by part."""
    return {part: (after[part].rss - before[part].rss) / count for part in _PARTS}


@contextlib.contextmanager
def _idle_streams(service: JobWorkerServiceStub, job_id: str, count: int) -> Iterator[None]:
    """Followers of a job that writes nothing, each known to be served."""
    request = pb.StreamRequest(job_id=job_id, follow=True)
    streams = [service.Stream(request) for _ in range(count)]
    # Calls of one connection are served in their order, so whatever answers behind them finds them open.
    service.List(pb.ListRequest(page_size=1))
    yield
    for stream in streams:
        stream.cancel()
    for stream in streams:
        with contextlib.suppress(grpc.RpcError):
            next(stream)


def _flood(service: JobWorkerServiceStub, count: int) -> str:
    """A job with a full message for each of so many followers."""
    size = str(count * CHUNK_BYTES)
    return agents.start_jobs(service, ("head", "-c", size, "/dev/zero"), 1)[0].id


@contextlib.contextmanager
def _stalled_streams(agent: Agent, job_id: str, count: int) -> Iterator[None]:
    """Followers that take nothing, each at a place of its own in the log."""
    requests = [
        pb.StreamRequest(job_id=job_id, offset=number * CHUNK_BYTES, follow=True).SerializeToString()
        for number in range(count)
    ]
    with fanout.client(agent.addr, STREAM, agents.files(agent), requests, count=0, stalled=count):
        yield


def _at_rest(rest: Snapshot) -> Table:
    rows: list[tuple[str, ...]] = [
        (part, f"{used.rss / 1024:.1f}", f"{used.pss / 1024:.1f}") for part, used in rest.items()
    ]
    rows.append(
        ("all", *(f"{sum(values) / 1024:.1f}" for values in zip(*map(astuple, rest.values()), strict=True)))
    )
    note = (
        "RSS counts shared pages in full for each: the flusher is a fork of the supervisor, of one memory with it."
    )
    return Table("Memory at rest", ("", "RSS MiB", "PSS MiB"), tuple(rows), (note,))


def _for_each(each: dict[str, dict[str, float]]) -> Table:
    rows = tuple((name, *(f"{used[part]:.1f}" for part in _PARTS)) for name, used in each.items())
    return Table("Memory for each", ("", *(f"{part} KiB" for part in _PARTS)), rows, ("Growth of RSS.",))


def _figures(rest: Snapshot, each: dict[str, dict[str, float]]) -> tuple[Figure, ...]:
    running, ended, idle, stalled = each.values()
    root_side = (rest["keeper"].rss + rest["supervisor"].rss) / 1024
    return (
        below("keeper and supervisor at rest", root_side, _ROOT_SIDE_MIB, " MiB"),
        below("keeper and supervisor, a running job", running["keeper"] + running["supervisor"], _JOB_KIB, " KiB"),
        below("keeper and supervisor, an ended job", ended["keeper"] + ended["supervisor"], _JOB_KIB, " KiB"),
        below("gateway at rest", rest["gateway"].rss / 1024, _GATEWAY_MIB, " MiB"),
        below("gateway, an idle stream", idle["gateway"], _STREAM_KIB, " KiB"),
        below("gateway, a stalled stream", stalled["gateway"], _STALLED_KIB, " KiB"),
    )

"""Hosts of an inventory whose agents answer as told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted
from support.inventory import Hosts

IDS = {"web1": "k7f3-9m2q-x4tz-b1cd", "web2": "95hh-fhpe-mbrk-zk8y"}
OUT, ERR = pb.OUTPUT_SOURCE_STDOUT, pb.OUTPUT_SOURCE_STDERR
ENDED, RUNNING = job_pb2.JOB_STATE_ENDED, job_pb2.JOB_STATE_RUNNING


class Host:
    """An agent with one job, which ends by itself unless it `waits` to be stopped."""

    def __init__(self, job_id: str) -> None:
        self.agent = scripted.ScriptedAgent()
        self.output: list[tuple[Any, bytes]] = []
        self.stale: list[pb.StaleFile] = []
        self.end = job_pb2.Job(id=job_id, state=ENDED, end_reason=job_pb2.END_REASON_EXITED, exit_code=0)
        self.job = job_pb2.Job(id=job_id, state=RUNNING, command="sleep", args=["9"])
        self.asked_for, self.following, self.finished, self.watched = (threading.Event() for _ in range(4))
        self.before_output: list[threading.Event] = []
        self.finished.set()
        methods = ("Start", "Stream", "Watch", "Stop", "Query", "Drain", "Undrain", "Reload", "GetAgentInfo")
        self.agent.handlers.update({name: getattr(self, name.lower()) for name in methods}, List=self.listed)

    def waits(self) -> None:
        self.finished.clear()

    def getagentinfo(self, _request: Any, _context: Any) -> pb.GetAgentInfoResponse:
        return pb.GetAgentInfoResponse(version="1.2.3", kernel="6.1", cgroup_mode="v2", max_active_jobs=9)

    def start(self, _request: Any, _context: Any) -> pb.StartResponse:
        return pb.StartResponse(job=self.job)

    def stream(self, request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        assert (request.follow, request.timestamps) == (True, True)
        offset = 0
        self.asked_for.set()
        for event in self.before_output:
            assert event.wait(60)
        for source, data in self.output:
            message = scripted.chunk(offset, data, source)
            offset += len(data)
            if request.format == pb.OUTPUT_FORMAT_JSON:
                message.chunk.resume_offset = offset
            yield message
        self.following.set()
        context.add_callback(self.finished.set)
        assert self.finished.wait(60)
        yield scripted.end(offset)

    def watch(self, _request: Any, _context: Any) -> Iterator[pb.WatchResponse]:
        self.watched.set()
        assert self.finished.wait(60)
        yield pb.WatchResponse(job=self.end)
        yield pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=True), resume_token="a")

    def stop(self, _request: Any, _context: Any) -> pb.StopResponse:
        self.end = job_pb2.Job(id=self.job.id, state=ENDED, end_reason=job_pb2.END_REASON_STOPPED, signal=15)
        self.finished.set()
        return pb.StopResponse(job=self.end)

    def listed(self, request: pb.ListRequest, _context: Any) -> pb.ListResponse:
        return pb.ListResponse(jobs=[self.job] if self.job.id.startswith(request.id_prefix) else [])

    def query(self, _request: Any, _context: Any) -> pb.QueryResponse:
        return pb.QueryResponse(job=self.job)

    def drain(self, _request: Any, _context: Any) -> pb.DrainResponse:
        return pb.DrainResponse(active_job_ids=[self.job.id])

    def undrain(self, _request: Any, _context: Any) -> pb.UndrainResponse:
        return pb.UndrainResponse()

    def reload(self, _request: Any, _context: Any) -> pb.ReloadResponse:
        return pb.ReloadResponse(read=["certificates", "policy"], stale_files=self.stale)

    def asked(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.agent.requests if isinstance(request, kind)]


class Web(Hosts):
    """The hosts web1 and web2."""

    def __init__(self, directory: Path) -> None:
        self.each = {name: Host(job_id) for name, job_id in IDS.items()}
        super().__init__(directory, {name: host.agent.endpoint().addr for name, host in self.each.items()})


@contextlib.contextmanager
def scripted_web(directory: Path) -> Iterator[Web]:
    """The hosts, for as long as they are needed; the inventory is in this directory."""
    hosts = Web(directory)
    try:
        yield hosts
    finally:
        for host in hosts.each.values():
            host.agent.close()

"""The supervisor killed under its jobs: when it answers again, and what is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import agents
from bench.processes import memory, supervisor_of
from bench.report import Figure, Outcome, Table, below
from bench.scale import Scale
from bench.stats import median
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import gateway
from support.agent import DEADLINE
from support.leftovers import descriptors
from support.root_side import RootSide, root_side
from support.waiting import wait_for_end

_WRITERS = 20
_EXIT_CODE = 7
# A writer outlives all kills, and some end between them.
_SCRIPT = f'i=0; while [ "$i" -lt "$1" ]; do echo "line $i"; sleep 0.2; i=$((i+1)); done; exit {_EXIT_CODE}'
_SECONDS = 1.0
_GROWTH = 1.1


def measure(scale: Scale) -> Outcome:
    with (
        agents.scratch() as directory,
        root_side(directory) as side,
        gateway.gateway(directory, gateway.behind(side.settings)) as front,
        front.stub() as service,
    ):
        quiet = agents.start_jobs(service, agents.QUIET, scale.many_jobs - _WRITERS)
        first = _holdings(side)
        lengths = [10 + 2 * number for number in range(_WRITERS)]
        writers = [
            service.Start(agents.start_request(("/bin/sh", "-c", _SCRIPT, "sh", str(length)))).job.id
            for length in lengths
        ]
        gaps = [_kill(side, service, quiet[number].id) for number in range(scale.kills)]
        outputs = [_output(service, job_id) for job_id in writers]
        codes = [agents.wait_ended(service, job_id).exit_code for job_id in writers]
        last = _holdings(side)
        states = [service.Query(pb.QueryRequest(job_id=job.id)).job.state for job in quiet]
    lost = (
        sum(output != _expected(length) for output, length in zip(outputs, lengths, strict=True)),
        sum(code != _EXIT_CODE for code in codes),
        sum(state != job_pb2.JOB_STATE_RUNNING for state in states),
    )
    return _outcome(scale, gaps, first, last, *lost)


@dataclass(frozen=True, slots=True)
class _Holdings:
    """What the supervisor has of the host, by quiet jobs alone."""

    rss_mib: float
    descriptors: int


def _holdings(side: RootSide) -> _Holdings:
    pid = supervisor_of(side.keeper.pid)
    return _Holdings(memory(pid).rss / 1024, descriptors(pid))


def _kill(side: RootSide, service: JobWorkerServiceStub, job_id: str) -> float:
    """Milliseconds from SIGKILL to the answer of the next supervisor, as a client sees it."""
    supervisor = supervisor_of(side.keeper.pid)
    begin = time.perf_counter()
    os.kill(supervisor, signal.SIGKILL)
    wait_for_end(supervisor)
    service.Query(pb.QueryRequest(job_id=job_id), timeout=DEADLINE)
    gap = (time.perf_counter() - begin) * 1000
    # The next life is to be killed while it works, not while it starts.
    time.sleep(0.5)
    return gap


def _output(service: JobWorkerServiceStub, job_id: str) -> bytes:
    """All of a job's output, once it has ended."""
    request = pb.StreamRequest(job_id=job_id, follow=True)
    return b"".join(response.chunk.data for response in service.Stream(request, timeout=DEADLINE))


def _expected(length: int) -> bytes:
    return "".join(f"line {number}\n" for number in range(length)).encode()


def _outcome(
    scale: Scale, gaps: Sequence[float], first: _Holdings, last: _Holdings, cut: int, codes: int, gone: int
) -> Outcome:
    rows = (
        ("until it answers again, p50", f"{median(gaps):.0f} ms"),
        ("until it answers again, longest", f"{max(gaps):.0f} ms"),
        ("RSS before the first kill, after the last", f"{first.rss_mib:.1f} MiB, {last.rss_mib:.1f} MiB"),
        ("descriptors likewise", f"{first.descriptors}, {last.descriptors}"),
        ("outputs with lost bytes", f"{cut} of {_WRITERS}"),
        ("exit codes lost", f"{codes} of {_WRITERS}"),
        ("quiet jobs lost", f"{gone} of {scale.many_jobs - _WRITERS}"),
    )
    note = (
        f"{scale.many_jobs} running jobs, {_WRITERS} of which write and then exit; {scale.kills} kills. "
        "The time is a client's: from SIGKILL to the answer to a Query of a running job."
    )
    lost = cut + codes + gone
    return Outcome(
        (Table("Recovery after SIGKILL of the supervisor", ("", ""), rows, (note,)),),
        (
            below(f"recovery with {scale.many_jobs} jobs", max(gaps) / 1000, _SECONDS, " s"),
            below("supervisor's RSS after recovery / before", last.rss_mib / first.rss_mib, _GROWTH),
            Figure("lost by recovery: outputs, exit codes, jobs", "0", str(lost), lost == 0),
        ),
    )

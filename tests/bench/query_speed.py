"""Query and List, with few and with many jobs that have ended."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

from bench import agents
from bench.report import Figure, Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, p99
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub

_FEW = 10
_REACH = 2.0

Call = Callable[[], object]
Samples = dict[tuple[str, int], list[float]]


def measure(scale: Scale) -> Outcome:
    sizes = (_FEW, scale.stored_jobs)
    with contextlib.ExitStack() as stack:
        calls: dict[tuple[str, int], Call] = {}
        synced: dict[int, float] = {}
        for size in sizes:
            service = stack.enter_context(agents.stub(stack.enter_context(agents.running(size))))
            synced[size] = agents.seconds_to_list(service)
            calls |= {(name, size): call for name, call in _calls(service)}
        samples: Samples = {key: [] for key in calls}
        for _ in range(scale.calls):
            for key, call in calls.items():
                begin = time.perf_counter()
                call()
                samples[key].append((time.perf_counter() - begin) * 1000)
    return _outcome(samples, synced)


def _calls(service: JobWorkerServiceStub) -> Iterator[tuple[str, Call]]:
    """A page of jobs, and one job after the other; the page is of one size, however many jobs there are."""
    page = pb.ListRequest(page_size=_FEW)
    ids = itertools.cycle([job.id for job in service.List(pb.ListRequest(page_size=1000)).jobs])
    yield "Query", lambda: service.Query(pb.QueryRequest(job_id=next(ids)))
    yield "List", lambda: service.List(page)


def _outcome(samples: Samples, synced: dict[int, float]) -> Outcome:
    few, many = synced
    rows = tuple(
        (f"{name}, {size} ended jobs", f"{median(times):.2f}", f"{p99(times):.2f}")
        for (name, size), times in sorted(samples.items(), reverse=True)
    )
    notes = (f"{len(samples['List', few])} calls each, interleaved, one at a time; List asks for {_FEW} jobs.",)
    head = ("", "s")
    waits = tuple((f"{size} ended jobs", f"{seconds:.2f}") for size, seconds in synced.items())
    return Outcome(
        (
            Table("Query and List", ("", "p50 ms", "p99 ms"), rows, notes),
            Table("From ready to the first List", head, waits),
        ),
        tuple(_figure(name, samples, few, many) for name in ("Query", "List")),
    )


def _figure(name: str, samples: Samples, few: int, many: int) -> Figure:
    return below(
        f"{name} p99, {many} ended jobs / {few}", p99(samples[name, many]) / p99(samples[name, few]), _REACH
    )

"""Looking into a small log and into a large one: what it takes until the first output is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from bench import agents
from bench.report import Outcome, Table, below
from bench.scale import MIB, Scale
from bench.stats import median, p99
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.waiting import wait_for_end

_SMALL = 2 * MIB
_REACH = 2.0
# In two halves, between which the index's clock goes on: a small log is written in less than that tells apart.
# And a line of the other output in the end.
_LAST = "the end\n"
_WRITE = "seq 1 1000000000 | head -c {}; sleep 0.1; seq 1 1000000000 | head -c {}; echo the end >&2"

Samples = dict[tuple[str, int], list[float]]


def measure(scale: Scale) -> Outcome:
    sizes = (_SMALL, scale.log_bytes)
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(agents.running(more="jobs: {keep_log: 0}\n"))
        service = stack.enter_context(agents.stub(agent))
        requests = {
            (name, size): request
            for size in sizes
            for name, request in _views(service, _job_with_log(service, size))
        }
        samples: Samples = {key: [] for key in requests}
        for _ in range(scale.looks):
            for key, request in requests.items():
                samples[key].append(_until_first(service.Stream, request))
    return _outcome(samples, sizes)


def _job_with_log(service: JobWorkerServiceStub, size: int) -> job_pb2.Job:
    script = _WRITE.format(size // 2, size - size // 2 - len(_LAST))
    job = service.Start(agents.start_request(("sh", "-c", script))).job
    wait_for_end(job.pid)
    job = agents.wait_ended(service, job.id)
    if job.log_bytes != size:
        raise RuntimeError(f"a log has {job.log_bytes} of {size} bytes")
    return job


def _views(service: JobWorkerServiceStub, job: job_pb2.Job) -> Iterator[tuple[str, pb.StreamRequest]]:
    half = pb.StreamRequest(job_id=job.id, offset=job.log_bytes // 2)
    yield "the last 10 lines", pb.StreamRequest(job_id=job.id, tail_lines=10)
    half_written = _written_at(service, half)
    yield "from when half of it was there", pb.StreamRequest(job_id=job.id, since=half_written)
    yield (
        "until half of it was there, the last 10 lines",
        pb.StreamRequest(job_id=job.id, until=half_written, tail_lines=10),
    )
    yield "from half of its bytes on", half
    yield (
        "stderr alone, whose one line is the last",
        pb.StreamRequest(job_id=job.id, source=pb.OUTPUT_SOURCE_STDERR),
    )


def _written_at(service: JobWorkerServiceStub, request: pb.StreamRequest) -> Timestamp:
    timed = pb.StreamRequest(timestamps=True)
    timed.MergeFrom(request)
    answers = service.Stream(timed)
    time = next(answer.chunk.time for answer in answers if answer.chunk.data)
    answers.cancel()
    return time


def _until_first(
    stream: Callable[[pb.StreamRequest], Iterator[pb.StreamResponse]], request: pb.StreamRequest
) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    answers = stream(request)
    # What comes first may only say where the output begins.
    next(answer for answer in answers if answer.chunk.data)
    took = (time.perf_counter() - begin) * 1000
    answers.cancel()  # type: ignore[attr-defined] # the stubs know an iterator only
    return took


def _outcome(samples: Samples, sizes: tuple[int, int]) -> Outcome:
    small, large = sizes
    rows, figures = [], []
    for name in dict.fromkeys(name for name, _ in samples):
        few, many = samples[name, small], samples[name, large]
        ratio = median(many) / median(few)
        rows.append((name, f"{median(few):.2f}", f"{p99(few):.2f}", f"{median(many):.2f}", f"{p99(many):.2f}"))
        figures.append(below(f"{name}, {large // MIB} MiB / {small // MIB} MiB", ratio, _REACH))
    kinds = [f"{size // MIB} MiB, {quantile} ms" for size in sizes for quantile in ("p50", "p99")]
    note = (
        f"{len(next(iter(samples.values())))} streams each, interleaved, one at a time, over mutual TLS: from the "
        "call until the first output is there. Each log is of a job that has ended, in lines of up to ten bytes."
    )
    return Outcome((Table("Looking into a log", ("", *kinds), tuple(rows), (note,)),), tuple(figures))

"""`python -m bench.ended_jobs STATE_DIR COUNT`: jobs that have ended, as an earlier life leaves them."""

from __future__ import annotations

import sys
import time

from jobworker.jobs import EndReason, Idempotency, JobRecord, State, Usage, new_job_id
from jobworker.limits import Enforcement, LimitStatus
from jobworker.supervisor.store import Store


def record(store: Store, job_id: str, number: int) -> JobRecord:
    """A small job's record; each ended a second after the one before."""
    created = time.time_ns() - (1_000_000 - number) * 1_000_000_000
    return JobRecord(
        job_id=job_id,
        principal="spiffe://dev.jobworker/user/writer",
        command="/bin/sh",
        args=("-c", f"echo {number}"),
        env_names=("LANG",),
        labels=(("team", "bench"),),
        workdir=store.work_path(job_id),
        timeout_ms=0,
        uid=1_900_000_000 + number,
        pid=1000 + number,
        state=State.ENDED,
        created_ns=created,
        started_ns=created + 1_000_000,
        ended_ns=created + 2_000_000,
        end_reason=EndReason.EXITED,
        exit_code=0,
        limits=(LimitStatus("pids", "1024", "1024", Enforcement.ENFORCED),),
        usage=Usage(cpu_usec=900, memory_peak_bytes=500_000),
        log_path=store.log_path(job_id),
        segment_bytes=5 * 1024 * 1024,
        log_bytes=0,
        output_ended=True,
    )


def main(state_dir: str, count: int) -> None:
    store = Store(state_dir)
    for number in range(count):
        job_id = new_job_id()
        store.create_job(job_id, None)
        store.save(record(store, job_id, number), 0.0, None, Idempotency())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

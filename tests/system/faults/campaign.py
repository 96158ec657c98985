"""Random SIGKILLs of a whole agent under load, and a comparison of all it kept with what the jobs recorded."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeVar

from jobworker.api.v1 import job_pb2
from jobworker.cli.owner_link import OwnerLink
from jobworker.client import Endpoint, connect
from jobworker.client.failures import CallFailed
from jobworker.client.output import Chunk
from jobworker.client.rpc.client import Client
from jobworker.errors import AgentUnavailable, TlsProblem
from jobworker.jobs import JobSpec
from jobworker.supervisor.job import UNSURE
from support.agent import Agent, part_of
from support.leftovers import cgroups, processes_with
from system.faults import jobs

# A storm of kills leaves a gateway moments to serve: a client may need many of its lives.
_PATIENCE = 900.0
_PARTS = ("keeper", "supervisor", "gateway")
# At once as well, but not keeper and supervisor: running jobs outlive that only under a service manager.
_TARGETS = (*((part,) for part in _PARTS), ("supervisor", "gateway"), ("keeper", "gateway"))
# Not this one, which may lie where a job's user has no way to.
_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or sys.executable
T = TypeVar("T")


@dataclass
class Report:
    """What a campaign did and found; recovery times in seconds.

    Attributes:
        unsure: starts that were cut off and whose jobs are LOST, since nobody can tell whether they ran.
    """

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    unsure: int = 0
    losses: list[str] = field(default_factory=list)
    recovery: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in _PARTS})


class Campaign:
    """One agent, workers that each run one job after the other, and the kills.

    Args:
        agent: to be killed; closed by `run`.
        kills: how many.
        workers: short jobs at a time.
        standing: jobs that run from before the first kill until after the last.
        seed: repeats kinds, contents, targets and pauses, not the interleaving.
    """

    def __init__(self, agent: Agent, kills: int, workers: int, standing: int, seed: int) -> None:
        self.report = Report(seed)
        self._agent, self._kills, self._workers, self._standing = agent, kills, workers, standing
        self._random = random.Random(seed)  # noqa: S311 - to be repeated
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._started: dict[str, str] = {}
        self._scratch = os.path.join(agent.directory, "scratch")
        os.mkdir(self._scratch)
        os.chmod(self._scratch, 0o1777)  # noqa: S103 - jobs run as other users
        self._program = shutil.copy(jobs.__file__, self._scratch)

    def run(self) -> Report:
        release = os.path.join(self._scratch, "release")
        os.mkfifo(release)
        holder = os.open(release, os.O_RDWR)
        try:
            with self._connect() as client:
                standing = {
                    self._start_standing(client, number, release): number for number in range(self._standing)
                }
            self._storm()
        finally:
            os.close(holder)
        with self._connect() as client:
            for job_id, number in standing.items():
                self._check_standing(client, job_id, number)
        self._check_whole()
        return self.report

    def _connect(self) -> AbstractContextManager[Client]:
        role = (os.path.join(self._agent.pki_dir, name) for name in ("ca.pem", "writer.pem", "writer.key"))
        return connect(Endpoint(self._agent.addr, *role))

    def _storm(self) -> None:
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            self._kill_all()
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def _lose(self, job_id: str, what: str) -> None:
        with self._lock:
            self.report.losses.append(f"job {job_id}: {what} (SEED={self.report.seed})")

    def _work(self, number: int) -> None:
        own = random.Random(f"{self.report.seed}/{number}")  # noqa: S311 - to be repeated
        with self._connect() as client:
            while not self._done.is_set():
                kind, seed = own.choice(list(jobs.SHAPES)), own.getrandbits(40)
                try:
                    self._live(client, kind, seed)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
                    self._lose(f"kind {kind}, content {seed}", f"{type(error).__name__}: {error}")

    def _start_standing(self, client: Client, seed: int, release: str) -> str:
        record = os.path.join(self._scratch, f"standing-{seed}.record")
        spec = JobSpec(_PYTHON, ("-I", "-S", self._program, "standing", str(seed), record, release))
        job_id = patiently(lambda: client.start(spec, idempotency_key=f"standing-{seed}")).id
        self._started[job_id] = record
        return job_id

    def _check_standing(self, client: Client, job_id: str, seed: int) -> None:
        stored = self._read(client, job_id, follow=True)
        if problem := difference(stored, jobs.standing_content(len(stored), seed)):
            self._lose(job_id, f"stored output: {problem}")
        self._check_end(patiently(lambda: client.query(job_id)), stored, seed, self._started[job_id])
        self.report.jobs["standing"] += 1
        self.report.bytes += len(stored)

    def _live(self, client: Client, kind: str, seed: int) -> None:
        record = os.path.join(self._scratch, f"{seed}.record")
        spec = JobSpec(_PYTHON, ("-I", "-S", self._program, kind, str(seed), record))
        key = f"campaign-{seed}"
        job_id = patiently(lambda: client.start(spec, idempotency_key=key)).id
        with self._lock:
            self._started[job_id] = record
        again = patiently(lambda: client.start(spec, idempotency_key=key))
        if again.id != job_id:
            self._lose(job_id, f"its key started {again.id} as well")
        if again.detail == UNSURE and not os.path.exists(record):
            # It was cut off while it was being started, and says so.
            with self._lock:
                self.report.unsure += 1
            return
        expected = jobs.content(kind, seed)
        for follow in (True, False):
            if problem := difference(self._read(client, job_id, follow=follow), expected):
                self._lose(job_id, f"{'followed' if follow else 'stored'} output: {problem}")
        self._check_end(patiently(lambda: client.query(job_id)), expected, seed, record)
        with self._lock:
            self.report.jobs[kind] += 1
            self.report.bytes += len(expected)

    def _read(self, client: Client, job_id: str, *, follow: bool) -> bytes:
        """The output; goes on behind the last byte where the client's own patience has ended."""
        data = bytearray()

        def go_on() -> None:
            for item in client.stream(job_id, offset=len(data), follow=follow):
                if isinstance(item, Chunk):
                    if item.offset != len(data):
                        raise ValueError(f"offset {item.offset} after {len(data)} bytes")
                    data.extend(item.data)

        while True:
            had = len(data)
            try:
                patiently(go_on)
                return bytes(data)
            except CallFailed:
                # A gateway that is killed again and again serves for moments: patience is for none at all.
                if len(data) == had:
                    raise

    def _check_end(self, job: job_pb2.Job, written: bytes, seed: int, record: str) -> None:
        state = job_pb2.JobState.Name(job.state)
        if state != "JOB_STATE_ENDED" or job.exit_code != jobs.exit_code(seed):
            reason = job_pb2.EndReason.Name(job.end_reason)
            told = f"{state}, {reason}, exit code {job.exit_code}, {job.detail!r}"
            self._lose(job.id, f"{told} instead of ended with {jobs.exit_code(seed)}")
        with open(record) as file:
            if (text := file.read()) != jobs.line(written, seed):
                self._lose(job.id, f"it recorded {text!r} itself: not run exactly once")

    def _kill_all(self) -> None:
        for number in range(self._kills):
            time.sleep(self._random.uniform(0.02, 0.6))
            self._kill(*self._random.choice(_TARGETS))
            if not (number + 1) % 25:
                sys.stderr.write(f"{number + 1} kills, {self.report.jobs.total()} jobs\n")

    def _kill(self, *parts: str) -> None:
        pids = patiently(self._pids)
        pidfds = [os.pidfd_open(pids[part]) for part in parts]
        began = time.monotonic()
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            select.select([pidfd], [], [], _PATIENCE)
            os.close(pidfd)
        self.report.kills["+".join(parts)] += 1
        # The supervisor becomes the keeper, and another supervisor serves.
        heir = pids["supervisor"]
        reach: dict[str, Callable[[], None]] = {
            "keeper": lambda: self._reach_keeper(heir),
            "supervisor": self._reach_supervisor,
            "gateway": self._reach_gateway,
        }
        for part in parts:
            patiently(reach[part])
            self.report.recovery[part].append(time.monotonic() - began)

    def _reach_keeper(self, heir: int) -> None:
        # One file, as often as it takes: looking through all of /proc would take the CPU from what is measured.
        if part_of(heir) != "keeper":
            raise ConnectionError(f"process {heir} is not the keeper yet")
        self._reach_supervisor()

    def _reach_supervisor(self) -> None:
        OwnerLink(os.path.join(self._agent.state_dir, "supervisor.sock")).close()

    def _reach_gateway(self) -> None:
        host, _, port = self._agent.addr.rpartition(":")
        socket.create_connection((host, int(port)), 1).close()

    def _pids(self) -> dict[str, int]:
        found = [(part_of(pid), pid) for pid in processes_with(self._agent.directory)]
        pids = {part: pid for part, pid in found if part in ("keeper", "gateway")}
        # What the supervisor has just cloned bears its name until it executes a job's command.
        pids |= {part: pid for part, pid in found if part == "supervisor" and parent_of(pid) == pids.get("keeper")}
        if missing := set(_PARTS) - pids.keys():
            raise ConnectionError(f"not running: {missing}")
        return pids

    def _check_whole(self) -> None:
        """No job beyond those started; nothing left of them once the agent has ended."""
        with self._connect() as client:
            known = patiently(lambda: {job.id for job in client.list_jobs()})
        for job_id in known ^ self._started.keys():
            self._lose(job_id, "known to the agent or to its client alone")
        if status := self._agent.close():
            self._lose("-", f"the agent ended with {status}")
        for job_id in self._started:
            if left := cgroups(job_id):
                self._lose(job_id, f"left {left}")
        end = time.monotonic() + _PATIENCE
        while (pids := processes_with(self._agent.directory)) and time.monotonic() < end:
            time.sleep(0.05)
        if pids:
            self._lose("-", f"processes left: {pids}")


def patiently(call: Callable[[], T]) -> T:
    """Call again while what it needs is being started again."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return call()
        # Nobody listens, or who did has gone.
        except (OSError, CallFailed, TlsProblem, AgentUnavailable) as error:
            if (isinstance(error, CallFailed) and error.code != "UNAVAILABLE") or time.monotonic() > end:
                raise
            time.sleep(0.005)


def parent_of(pid: int) -> int | None:
    """The pid of its parent; None for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def difference(got: bytes, expected: bytes) -> str:
    """Where they begin to differ; empty where they do not."""
    if got == expected:
        return ""
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(got, expected, strict=False)))
    return f"{len(got)} bytes for {len(expected)}, other from offset {at}"

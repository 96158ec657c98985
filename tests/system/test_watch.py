"""Watches of a real agent: what dies meanwhile, who does not read, and many jobs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
import threading
from collections import Counter
from functools import partial

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import connect
from jobworker.client.changes import Changed, Restarted
from jobworker.client.rpc.client import Client
from jobworker.jobs import JobSpec
from jobworker.wire.messages import JobReply, StartJob
from support import gateway, processes
from support.agent import Agent
from support.link import CALLER, DEADLINE
from support.root_side import root_side
from support.trails import wait_for_stream
from support.waiting import until
from support.whole import Whole

pytestmark = pytest.mark.root

JOBS, BATCH = 1_000, 100


class Ends(threading.Thread):
    """Watches all jobs until so many have ended."""

    def __init__(self, client: Client, number: int) -> None:
        super().__init__(daemon=True)
        self._client, self._number = client, number
        self.began = threading.Event()
        self.codes: dict[str, int] = {}
        self.told: Counter[str] = Counter()
        self.restarts = 0
        self.start()

    def run(self) -> None:
        for event in self._client.watch(snapshot=True):
            self.began.set()
            match event:
                case Restarted():
                    self.restarts += 1
                case Changed(job) if job.state == job_pb2.JOB_STATE_ENDED:
                    self.codes[job.id] = job.exit_code
                    self.told[job.id] += 1
                    if len(self.codes) == self._number:
                        return


@pytest.mark.timeout(600)
def test_no_end_is_missed_whatever_dies(whole: Whole) -> None:
    """A thousand jobs end while gateway and supervisor are killed: each end is told, with its exit code."""
    link = whole.side.link()
    with connect(whole.endpoint("reader")) as client:
        ends = Ends(client, JOBS)
        assert ends.began.wait(DEADLINE)
        expected = dict[str, int]()
        kills = itertools.cycle(["gateway", "supervisor", "nobody", "both"])
        for batch, victim in zip(range(0, JOBS, BATCH), kills, strict=False):
            codes = [i % 200 for i in range(batch, batch + BATCH)]
            numbers = {link.send(_job(code)): code for code in codes}
            while numbers:
                frame = link.receive()
                assert isinstance(frame.message, JobReply)
                expected[frame.message.record.job_id] = numbers.pop(frame.seq)
            if victim in ("supervisor", "both"):
                link = whole.kill_supervisor(link)
            if victim in ("gateway", "both"):
                whole.kill_gateway()
        ends.join(DEADLINE)
        missing = expected.keys() - ends.codes.keys()
        assert not missing, f"{len(missing)} ends were not told, after {ends.restarts} restarts"
        assert ends.codes == expected


def test_who_does_not_read_costs_others_nothing(whole: Whole) -> None:
    """Each record has 60 KB, so that what stalls is the gateway's write, and not only the reader."""
    link = whole.side.link()
    with whole.gateway.stub(name="reader") as stub, connect(whole.endpoint("reader")) as client:
        stalled = stub.Watch(pb.WatchRequest())
        assert next(stalled).HasField("mark")
        ends, before = Ends(client, 200), whole.gateway.memory_kib()
        assert ends.began.wait(DEADLINE)
        for number in range(200):
            job = link.start("/bin/sh", "-c", f"exit {number % 50}", "x" * 60_000)
            until(partial(ends.codes.get, job.job_id), number % 50)
        assert whole.gateway.memory_kib() < before + 40 * 1024
        # Whatever it had not read it gets as it is now.
        seen, token = dict[str, int](), ""
        for answer in stalled:
            seen[answer.job.id], token = answer.job.state, answer.resume_token
            if set(seen) == ends.codes.keys() and set(seen.values()) == {job_pb2.JOB_STATE_ENDED}:
                break
        assert token
        stalled.cancel()


def test_a_token_is_good_for_the_next_gateway(whole: Whole) -> None:
    link = whole.side.link()
    first = link.start("/bin/true")
    with whole.gateway.stub(name="reader") as stub:
        watch = stub.Watch(pb.WatchRequest(job_ids=[first.job_id], snapshot=True))
        while not (answer := next(watch)).mark.snapshot_complete:
            pass
        token = answer.resume_token
    second = link.start("/bin/sh", "-c", "exit 9")
    whole.kill_gateway()
    with whole.gateway.stub(name="reader") as stub:
        for answer in stub.Watch(pb.WatchRequest(resume_token=token)):
            if (answer.job.id, answer.job.state) == (second.job_id, job_pb2.JOB_STATE_ENDED):
                break
        assert answer.job.exit_code == 9
        whole.kill_supervisor(link)
        # The gateway was there all along: nothing was missed.
        assert next(stub.Watch(pb.WatchRequest(resume_token=token))).resume_token
    whole.kill_gateway()
    with whole.gateway.stub(name="reader") as stub, pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(pb.WatchRequest(resume_token=token)))
    assert gateway.code(caught.value) == "FAILED_PRECONDITION"
    assert gateway.reason(caught.value) == "WATCH_EXPIRED"


def test_a_removed_job_is_told_of() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with (
            root_side(directory, keep_ended=1) as side,
            gateway.gateway(directory, gateway.behind(side.settings)) as own,
        ):
            link = side.link()
            with own.stub(name="reader") as stub:
                watch = stub.Watch(pb.WatchRequest(states=[job_pb2.JOB_STATE_RUNNING]))
                next(watch)
                records = [link.start("/bin/true") for _ in range(2)]
                removed = next(answer.removed_job_id for answer in watch if answer.removed_job_id)
                assert removed in {record.job_id for record in records}
                watch.cancel()


def test_the_commands(agent: Agent) -> None:
    ids = [agent.start_job("--label", "of=watch", "sh", "-c", f"sleep 0.2; exit {code}") for code in (0, 4)]
    waited = agent.cli("wait", *ids)
    assert (waited.returncode, len(waited.stdout.splitlines())) == (4, 2)
    assert agent.cli("wait", ids[0][:9]).returncode == 0
    assert agent.cli("wait", "0000-0000-0000-0000").returncode == 125
    long = agent.start_job("sleep", "1000")
    assert agent.cli("wait", long, "--timeout", "200ms").returncode == 124
    assert agent.cli("wait", long, ids[1], "--any").returncode == 4
    command = agent.command("wait", long, "--format", "json", "--request-id", "waits-for-the-end")
    with processes.running(command, stdout=subprocess.PIPE) as waiting:
        wait_for_stream(agent.state_dir, request="waits-for-the-end")
        agent.cli("stop", long, check=True)
        told, _ = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, json.loads(told)["end_reason"]) == (143, "STOPPED")


def _job(code: int) -> StartJob:
    return StartJob(CALLER, JobSpec("/bin/sh", ("-c", f"sleep 0.{code % 10}; exit {code}")))

"""worker-client on many hosts, when it is interrupted or nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import processes
from support.scripted_hosts import IDS, OUT, Web, scripted_web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with scripted_web(tmp_path) as hosts:
        yield hosts


def running(
    web: Web, *args: str, stdout: int = subprocess.PIPE
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return processes.running(web.command("--group", "web", *args), stdout=stdout, stderr=subprocess.PIPE)


def following(web: Web) -> None:
    for host in web.each.values():
        assert host.following.wait(60)


def test_ctrl_c_stops_the_jobs_of_all_hosts_and_waits_for_them(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "run", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"2 hosts: 2 failed" in said
    assert b"failed, STOPPED: web1 web2" in said or b"failed, STOPPED: web2 web1" in said
    assert all(len(host.asked(pb.StopRequest)) == 1 for host in web.each.values())


def test_ctrl_c_does_not_claim_to_stop_what_it_does_not(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "drain", "--wait") as process:
        for host in web.each.values():
            assert host.watched.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.readline() == (
            b"worker-client: no other host is begun; Ctrl-C again leaves without waiting\n"
        )
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(host.asked(pb.StopRequest) for host in web.each.values())


def test_a_second_ctrl_c_leaves_at_once(web: Web) -> None:
    for host in web.each.values():
        host.waits()
        host.agent.handlers["Stop"] = lambda _request, _context: pb.StopResponse()
    with running(web, "run", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert b"Ctrl-C again leaves without waiting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"2 hosts: 2 left before the end" in said
    for name, job_id in IDS.items():
        assert f"{name}: job {job_id} may go on".encode() in said


def test_ctrl_c_can_leave_the_jobs_running(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "run", "--detach-on-interrupt", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(host.asked(pb.StopRequest) for host in web.each.values())


def test_nobody_reading_ends_the_jobs_quietly(web: Web) -> None:
    for host in web.each.values():
        host.waits()
        host.output = [(OUT, b"x\n")]
        # Both jobs are followed by then.
        host.before_output = [each.asked_for for each in web.each.values()]
    reading, writing = os.pipe()
    os.close(reading)
    with running(web, "run", "sleep", "9", stdout=writing) as process:
        os.close(writing)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")
    assert all(host.asked(pb.StopRequest) for host in web.each.values())


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_full_disk_leaves_jobs_running_but_not_unknown(web: Web, form: str) -> None:
    for host in web.each.values():
        host.waits()
        host.output = [(OUT, b"x\n")]
        # With JSON already that a job was started cannot be written, and then there may be no second job.
        host.before_output = [each.asked_for for each in web.each.values()] if form == "text" else []
    with (
        open("/dev/full", "wb") as full,
        running(web, "run", "--format", form, "x", stdout=full.fileno()) as process,
    ):
        _, said = process.communicate(timeout=60)
    # 125 would say that no host was called.
    assert process.returncode == 1
    assert b"worker-client: the output cannot be written: No space left on device" in said
    started = [name for name, host in web.each.items() if host.asked(pb.StartRequest)]
    assert started == list(IDS) or form == "json"
    for name in started:
        assert f"worker-client: {name}: job {IDS[name]} may go on".encode() in said
    assert said.count(b"may go on") == len(started)
    assert b"left before the end: web" in said
    assert not any(host.asked(pb.StopRequest) for host in web.each.values())


def test_nobody_reading_ends_a_job_that_is_being_started(web: Web) -> None:
    first, second = web.each.values()
    starting, stopped, answer = (threading.Event() for _ in range(3))

    def start_late(_request: Any, _context: Any) -> pb.StartResponse:
        starting.set()
        assert answer.wait(60)
        return pb.StartResponse(job=second.job)

    def stop_first(request: Any, context: Any) -> pb.StopResponse:
        stopped.set()
        return first.stop(request, context)

    first.waits()
    second.waits()
    first.before_output = [starting]
    first.output = [(OUT, b"x\n")]
    first.agent.handlers["Stop"], second.agent.handlers["Start"] = stop_first, start_late
    reading, writing = os.pipe()
    os.close(reading)
    with running(web, "run", "sleep", "9", stdout=writing) as process:
        os.close(writing)
        assert stopped.wait(60)
        # It does not leave before it knows what to stop.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        answer.set()
        assert process.wait(60) == 141
    assert all(host.asked(pb.StopRequest) for host in web.each.values())

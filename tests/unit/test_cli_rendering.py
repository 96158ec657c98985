"""Jobs and agents as JSON and as text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.cli import client_json, client_text
from jobworker.errors import ProtocolError

CREATED = 1_790_000_000


def test_what_is_no_time_is_no_answer_of_an_agent() -> None:
    job = job_pb2.Job()
    job.created_at.seconds = 10**12
    with pytest.raises(ProtocolError, match="created_at is no time"):
        client_json.time(job, "created_at")
    assert client_json.time(job, "ended_at") is None


def a_job(**fields: Any) -> job_pb2.Job:
    job = job_pb2.Job(
        id="k7f3-9m2q-x4tz-b1cd",
        state=job_pb2.JOB_STATE_RUNNING,
        pid=4711,
        uid=1_900_000_000,
        command="make",
        args=["all", "a b"],
        env_names=["LANG"],
        workdir="/var/lib/jobworker/jobs/x/work",
        principal="spiffe://example.org/user/alice",
        request_id="deploy-7",
        labels={"team": "build", "a": "b"},
        limits=[
            job_pb2.LimitStatus(
                name="cpu", requested="50%", value="50%", enforcement=job_pb2.ENFORCEMENT_ENFORCED
            ),
            job_pb2.LimitStatus(
                name="memory", requested="64M", enforcement=job_pb2.ENFORCEMENT_UNSUPPORTED, detail="no controller"
            ),
        ],
        usage=job_pb2.Usage(memory_peak_bytes=3 * 1024**2, oom_kills=1, memory_bytes=1024**2, processes=3),
        limits_restored=2,
        log_path="/var/lib/jobworker/jobs/x/logs/job_x.log",
        log_bytes=2**40,
    )
    job.created_at.seconds = CREATED
    job.started_at.FromNanoseconds(CREATED * 10**9 + 1_500_000)
    job.usage.cpu_time.FromMilliseconds(1250)
    job.usage.throttled_time.FromMilliseconds(250)
    job.usage.cpu_stalled_time.FromMilliseconds(500)
    job.MergeFrom(job_pb2.Job(**fields))
    return job


def ended(reason: str, **fields: Any) -> job_pb2.Job:
    number = job_pb2.EndReason.Value(f"END_REASON_{reason}")
    return a_job(state=job_pb2.JOB_STATE_ENDED, end_reason=number, **fields)


def test_a_running_job_as_json() -> None:
    assert client_json.job(a_job()) == {
        "id": "k7f3-9m2q-x4tz-b1cd",
        "state": "RUNNING",
        "end_reason": None,
        "exit_code": None,
        "signal": None,
        "detail": "",
        "pid": 4711,
        "uid": 1_900_000_000,
        "user": "",
        "created_at": "2026-09-21T14:13:20Z",
        "started_at": "2026-09-21T14:13:20.001500Z",
        "ended_at": None,
        "command": "make",
        "args": ["all", "a b"],
        "env_names": ["LANG"],
        "workdir": "/var/lib/jobworker/jobs/x/work",
        "principal": "spiffe://example.org/user/alice",
        "request_id": "deploy-7",
        "labels": {"team": "build", "a": "b"},
        "profile": "",
        "timeout_seconds": None,
        "limits": {
            "cpu": {"requested": "50%", "value": "50%", "enforcement": "ENFORCED", "detail": ""},
            "memory": {
                "requested": "64M",
                "value": "",
                "enforcement": "UNSUPPORTED",
                "detail": "no controller",
            },
        },
        "limits_restored": 2,
        "usage": {
            "cpu_seconds": 1.25,
            "memory_peak_bytes": 3_145_728,
            "oom_kills": 1,
            "throttled_seconds": 0.25,
            "io_read_bytes": 0,
            "io_written_bytes": 0,
            "memory_bytes": 1024**2,
            "processes": 3,
            "cpu_stalled_seconds": 0.5,
            "memory_stalled_seconds": 0.0,
            "io_stalled_seconds": 0.0,
        },
        "log_path": "/var/lib/jobworker/jobs/x/logs/job_x.log",
        "log_bytes": 2**40,
        "lost_bytes": 0,
        "output_ended": False,
        "stdin_open": False,
        "stdin_bytes": 0,
        "stuck": False,
        "sandbox": {"profile": "", "parts": [], "missing": []},
    }


def test_what_the_job_waited_for_and_whose_limits_were_set_again_as_text() -> None:
    text = client_text.job(a_job(), CREATED + 5)
    assert re.search(r"^set again +2 times, since others had changed them$", text, re.MULTILINE)
    assert re.search(r"^memory peak +3M, 1M now, 1 killed for want of it$", text, re.MULTILINE)
    assert re.search(r"^waited +0\.500 s for a CPU$", text, re.MULTILINE)


def test_exit_code_and_signal_are_null_or_a_number() -> None:
    exited = client_json.job(ended("EXITED", exit_code=0, output_ended=True))
    assert (exited["state"], exited["end_reason"]) == ("ENDED", "EXITED")
    assert (exited["exit_code"], exited["signal"], exited["output_ended"]) == (0, None, True)
    killed = client_json.job(ended("OOM_KILLED", signal=9))
    assert (killed["end_reason"], killed["exit_code"], killed["signal"]) == ("OOM_KILLED", None, 9)


def test_the_sandbox_is_told_with_what_it_lacks() -> None:
    sandbox = job_pb2.Sandbox(profile="strict", parts=["system-calls"], missing=["landlock", "pid-namespace"])
    assert client_json.job(a_job(sandbox=sandbox))["sandbox"] == {
        "profile": "strict",
        "parts": ["system-calls"],
        "missing": ["landlock", "pid-namespace"],
    }
    told = client_text.job(a_job(sandbox=sandbox), 0)
    assert "sandbox      strict, without landlock, pid-namespace, which the host lacks\n" in told
    part = pb.SandboxPart(name="landlock", missing_because="EOPNOTSUPP")
    agent = pb.GetAgentInfoResponse(default_sandbox="standard", sandbox_parts=[part, pb.SandboxPart(name="x")])
    assert client_json.agent(agent)["sandbox_parts"] == {
        "landlock": {"missing_because": "EOPNOTSUPP"},
        "x": {"missing_because": ""},
    }
    assert "landlock: EOPNOTSUPP" in client_text.agent(agent)


def test_every_field_of_a_job_is_told() -> None:
    renamed = {"timeout": "timeout_seconds"}
    fields = {renamed.get(field.name, field.name) for field in job_pb2.Job.DESCRIPTOR.fields}
    assert client_json.job(a_job()).keys() == fields


def test_every_field_of_an_agent_is_told() -> None:
    fields = {field.name for field in pb.GetAgentInfoResponse.DESCRIPTOR.fields}
    assert client_json.agent(pb.GetAgentInfoResponse()).keys() == fields


def test_values_of_a_newer_agent_are_told_by_number() -> None:
    assert client_json.job(job_pb2.Job(state=99, end_reason=77))["state"] == "99"  # type: ignore[arg-type] # newer
    assert client_json.job(job_pb2.Job())["state"] is None


def test_json_is_one_line_of_ascii() -> None:
    told = client_json.line(client_json.job(a_job(args=["\n", "\x1b]0;x\x07", "€"])))
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["args"][-3:] == ["\n", "\x1b]0;x\x07", "€"]


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (a_job(), "RUNNING"),
        (a_job(stuck=True), "RUNNING stuck"),
        (ended("EXITED", exit_code=3), "EXITED 3"),
        (ended("SIGNALED", signal=9), "SIGNALED KILL"),
        (ended("SIGNALED", signal=36), "SIGNALED 36"),
        (ended("OOM_KILLED", signal=9), "OOM_KILLED"),
        (ended("LOST"), "LOST"),
        (job_pb2.Job(), "unknown"),
    ],
)
def test_a_status_is_a_word_or_two(job: job_pb2.Job, told: str) -> None:
    assert client_text.status(job) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86_400, "1d"),
        (1e7, "115d"),
    ],
)
def test_ages(seconds: float, told: str) -> None:
    assert client_text.age(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1K"), (1536, "1.5K"), (2**30, "1G"), (2**44, "16T")],
)
def test_sizes(count: int, told: str) -> None:
    assert client_text.size(count) == told


def test_a_table_is_aligned_and_keeps_each_job_on_its_line() -> None:
    jobs = [a_job(), ended("SIGNALED", signal=15, command="evil\n\x1b[2J", args=["x" * 200])]
    head, first, second = client_text.table(jobs, CREATED + 65).split("\n")
    assert head.split() == ["ID", "STATE", "AGE", "BY", "COMMAND"]
    assert first.split(maxsplit=4) == ["k7f3-9m2q-x4tz-b1cd", "RUNNING", "1m", "alice", "make all 'a b'"]
    assert second.isprintable()
    assert second.endswith("…")
    assert r"evil\n\x1b[2J" in second
    assert head.index("COMMAND") == first.index("make") == second.index("'evil")


def test_an_empty_table_has_its_head() -> None:
    assert client_text.table([], 0).split() == ["ID", "STATE", "AGE", "BY", "COMMAND"]


def test_a_job_as_text() -> None:
    job = ended("OOM_KILLED", signal=9, log_bytes=10, lost_bytes=3, detail="killed\x1b[2J")
    job.timeout.seconds = 90
    lines = client_text.job(job, CREATED + 120).split("\n")
    told = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}
    assert told["id"] == "k7f3-9m2q-x4tz-b1cd"
    assert told["state"] == "OOM_KILLED"
    assert told["detail"] == r"killed\x1b[2J"
    assert told["command"] == "make all 'a b'"
    assert told["labels"] == "a=b, team=build"
    assert told["created"] == "2026-09-21T14:13:20Z (2m ago)"
    assert told["timeout"] == "90 s"
    assert told["signal"] == "9 (KILL)"
    assert told["limits"] == "cpu 50% ENFORCED"
    assert "memory 64M UNSUPPORTED: no controller" in client_text.job(job, 0)
    assert told["cpu used"] == "1.250 s, held back for 0.250 s"
    assert told["output"].endswith("bytes, still growing, 3 bytes lost")
    assert "ended" not in told
    assert "exit code" not in told


def test_an_agent_as_text() -> None:
    support = pb.LimitSupport(
        name="pids", enforcement=job_pb2.ENFORCEMENT_ENFORCED, default_value="1024", maximum="32768"
    )
    agent = pb.GetAgentInfoResponse(
        version="0.1.0", hostname="h", kernel="6.1", cgroup_mode="v2", limits=[support]
    )
    told = client_text.agent(agent)
    assert "cgroups      v2" in told
    assert "limits       pids default 1024, at most 32768 ENFORCED" in told
    assert "agent        0.1.0\n" in told
    agent.supervisor_version = "0.0.9"
    assert "agent        0.1.0, its supervisor 0.0.9\n" in client_text.agent(agent)

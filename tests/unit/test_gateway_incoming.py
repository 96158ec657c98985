"""Requests as the agent's types: what is wrong is named as the contract names it."""

from __future__ import annotations

import base64
import contextlib
import signal
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField
from jobworker.gateway import incoming
from jobworker.jobs import JobSpec, OutputFormat, Source, State
from jobworker.limits import Limits
from jobworker.wire.messages import StopJob
from support.callers import caller

CALLER = caller()
ID = "k7f3-9m2q-x4tz-b1cd"


def test_a_whole_request() -> None:
    request = pb.StartRequest(
        command="make",
        args=["-j", "2"],
        env={"B": "2", "A": "1"},
        workdir="/srv",
        limits=job_pb2.Limits(cpu="50%", memory="64M", pids=10),
        best_effort=True,
        timeout=Duration(seconds=1, nanos=1),
        labels={"team": "build"},
        sandbox="strict",
    )
    assert incoming.spec(request) == JobSpec(
        "make",
        ("-j", "2"),
        (("A", "1"), ("B", "2")),
        "/srv",
        Limits(500, 64 * 1024**2, 10),
        timeout_ms=1001,
        labels=(("team", "build"),),
        best_effort=True,
        sandbox="strict",
    )


def test_what_is_left_out_is_not_asked_for() -> None:
    assert incoming.spec(pb.StartRequest(command="ls")) == JobSpec("ls")


BAD_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"command": ""}, "command"),
    ({"command": "a\0b"}, "command"),
    ({"sandbox": "STRICT"}, "sandbox"),
    ({"args": ["a", "b\0"]}, "args[1]"),
    ({"args": ["x" * 200 * 1024]}, "args[0]"),
    ({"args": ["x" * 100_000] * 3}, "args"),
    ({"args": ["x"] * 8_193}, "args"),
    ({"env": {"": "x"}}, "env"),
    ({"env": {"A=B": "x"}}, "env"),
    ({"env": {"A": "\0"}}, "env[A]"),
    ({"workdir": "relative"}, "workdir"),
    ({"workdir": "/a\0"}, "workdir"),
    ({"labels": {"No": "x"}}, "labels"),
    ({"labels": {"a": "x\n"}}, "labels[a]"),
    ({"labels": {f"a{i}": "" for i in range(33)}}, "labels"),
    *(
        ({"limits": {"cpu": text}}, "limits.cpu")
        for text in ("50", "0%", "-1%", "50 %", "NaN%", "1e3%", "max", "max\n")
    ),
    *(
        ({"limits": {"memory": text}}, "limits.memory")
        for text in ("-1M", "1e9G", "0", "1K", str(2**64), "max", "1 M")
    ),
    ({"limits": {"pids": 2**32 - 1}}, "limits.pids"),
    ({"timeout": Duration(seconds=0)}, "timeout"),
    ({"timeout": Duration(seconds=-1)}, "timeout"),
    ({"timeout": Duration(seconds=2**62)}, "timeout"),
    ({"timeout": Duration(seconds=1, nanos=2_000_000_000)}, "timeout"),
    ({"timeout": Duration(seconds=2, nanos=-1_500_000_000)}, "timeout"),
]


@pytest.mark.parametrize(("fields", "named"), BAD_STARTS)
def test_a_bad_start_names_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        incoming.spec(pb.StartRequest(**{"command": "ls", **fields}))
    assert caught.value.field == named
    assert len(str(caught.value)) < 300


def test_the_value_of_a_variable_is_not_told() -> None:
    with pytest.raises(InvalidField) as caught:
        incoming.spec(pb.StartRequest(command="ls", env={"TOKEN": "secret\0"}))
    assert "secret" not in str(caught.value)


def test_a_short_timeout_is_not_none() -> None:
    assert incoming.spec(pb.StartRequest(command="ls", timeout=Duration(nanos=1))).timeout_ms == 1


def test_how_to_stop() -> None:
    assert incoming.stop(CALLER, pb.StopRequest(job_id=ID)) == StopJob(
        CALLER, ID, signal.SIGTERM, 10_000, force=False
    )
    request = pb.StopRequest(job_id=ID, signal="SIGINT", grace=Duration(), force=True)
    assert incoming.stop(CALLER, request) == StopJob(CALLER, ID, signal.SIGINT, 0, force=True)


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "term", "sigterm"])
def test_signals_by_name(name: str) -> None:
    assert incoming.stop(CALLER, pb.StopRequest(job_id=ID, signal=name)).signal == signal.SIGTERM


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *(({"job_id": text}, "job_id") for text in ("", "../x", ".", "\0", "x" * 10_240, ID + "\n", ID.upper())),
        *(({"signal": text}, "signal") for text in ("15", "FOO", "SIG", "SIGSIGTERM", "_IGN", "x" * 1000)),
        ({"grace": Duration(seconds=3601)}, "grace"),
        ({"grace": Duration(nanos=-1)}, "grace"),
    ],
)
def test_a_bad_stop_names_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        incoming.stop(CALLER, pb.StopRequest(**{"job_id": ID, **fields}))
    assert caught.value.field == named
    assert len(str(caught.value)) < 300


def test_which_jobs_to_list() -> None:
    request = pb.ListRequest(
        states=[job_pb2.JOB_STATE_RUNNING], labels={"a": "b"}, principal="p", id_prefix="k7f3"
    )
    assert incoming.wanted(request).states == {State.RUNNING}
    assert incoming.wanted(request).labels == (("a", "b"),)
    assert incoming.wanted(request).id_prefix == "k7f3"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"states": [0]}, "states"),
        ({"states": [99]}, "states"),
        ({"id_prefix": "abc"}, "id_prefix"),
        ({"id_prefix": "../."}, "id_prefix"),
        ({"principal": "x" * 401}, "principal"),
        ({"created_since": Timestamp(seconds=-1)}, "created_since"),
        ({"created_since": Timestamp(seconds=2), "created_until": Timestamp(seconds=2)}, "created_until"),
        ({"labels": {f"a{i}": "" for i in range(33)}}, "labels"),
    ],
)
def test_a_bad_list_names_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        incoming.wanted(pb.ListRequest(**fields))
    assert caught.value.field == named


@pytest.mark.parametrize(("asked", "given_size"), [(0, 100), (7, 7), (5_000, 1_000), (2**32 - 1, 1_000)])
def test_page_sizes_are_bounded(asked: int, given_size: int) -> None:
    assert incoming.page_size(pb.ListRequest(page_size=asked)) == given_size


@given(st.integers(0, 2**63 - 1))
def test_a_page_token_comes_back(created_ns: int) -> None:
    token = incoming.page_token((created_ns, ID))
    assert incoming.position(token) == (created_ns, ID)
    assert len(token) < 80


@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_other_token_is_refused(token: str) -> None:
    with contextlib.suppress(InvalidField):
        position = incoming.position(token)
        assert position is None or incoming.page_token(position) == token


@pytest.mark.parametrize(
    "token", ["x", "é", incoming.page_token((1, "." * 19)), incoming.page_token((1, ID)) + "=" * 80]
)
def test_a_bad_token_is_named(token: str) -> None:
    with pytest.raises(InvalidField) as caught:
        incoming.position(token)
    assert caught.value.field == "page_token"


def test_formats() -> None:
    asked = [incoming.output_format(pb.StreamRequest(format=number)) for number in pb.OutputFormat.values()]
    assert asked == [OutputFormat.BINARY, *OutputFormat]
    with pytest.raises(InvalidField) as caught:
        incoming.output_format(pb.StreamRequest(format=9))  # type: ignore[arg-type] # as a newer client may
    assert str(caught.value) == "format: 9 is not a format that this agent knows; for example TEXT"


def test_sources() -> None:
    asked = [incoming.source(pb.StreamRequest(source=number)) for number in pb.OutputSource.values()]
    assert asked == [None, Source.STDOUT, Source.STDERR]
    with pytest.raises(InvalidField):
        incoming.source(pb.StreamRequest(source=9))  # type: ignore[arg-type] # as a newer client may

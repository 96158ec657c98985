"""The codec: exact round trips, and nothing but exact input accepted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import codec
from jobworker.errors import ProtocolError
from jobworker.jobs import JobRecord, JobSpec, State
from jobworker.limits import Enforcement, Limits, LimitStatus
from jobworker.wire import frames, messages

TEXT = st.text(alphabet=st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
SPECS = st.builds(
    JobSpec,
    command=TEXT,
    args=st.lists(TEXT).map(tuple),
    env=st.lists(st.tuples(TEXT, TEXT)).map(tuple),
    limits=st.builds(Limits, st.none() | st.integers(-(2**63), 2**63 - 1)),
    best_effort=st.booleans(),
    stdin=st.binary(),
)


@given(SPECS)
def test_a_value_survives_the_way_there_and_back(spec: JobSpec) -> None:
    assert codec.loads(JobSpec, codec.dumps(spec)) == spec


def test_sparse_says_nothing_of_what_has_its_default() -> None:
    # What a later version adds must not make an old specification another one.
    assert codec.dumps_sparse(JobSpec("c")) == b'{"command":"c"}'
    spec = JobSpec("c", ("a",), limits=Limits(pids=3), best_effort=True)
    assert json.loads(codec.dumps_sparse(spec)) == {
        "command": "c",
        "args": ["a"],
        "limits": {"pids": 3},
        "best_effort": True,
    }


def _record() -> dict[str, Any]:
    record = JobRecord(
        job_id="k7f3-9m2q-x4tz-b1cd",
        principal="p",
        command="c",
        args=("a",),
        env_names=(),
        labels=(("k", "v"),),
        workdir="/",
        timeout_ms=0,
        uid=1,
        pid=2,
        state=State.RUNNING,
        created_ns=3,
        limits=(LimitStatus("cpu", "50%", "50%", Enforcement.ENFORCED),),
    )
    plain: dict[str, Any] = json.loads(codec.dumps(record))
    assert codec.from_plain(JobRecord, plain) == record
    return plain


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("pid",), "2", "pid: str instead of int"),
        (("pid",), True, "pid: bool instead of int"),
        (("pid",), 2**63, "pid: beyond 64 bits"),
        (("stuck",), 0, "stuck: int instead of bool"),
        (("command",), None, "command: NoneType instead of str"),
        (("args",), "abc", "args: not a list"),
        (("args", 0), 1, "args[0]: int instead of str"),
        (("labels", 0), ["k"], "labels[0]: 1 items instead of 2"),
        (("state",), "SLEEPING", "state: 'SLEEPING' is not a State"),
        (("state",), ["RUNNING"], "is not a State"),
        (("limits", 0, "extra"), 1, "limits[0]: unknown field 'extra'"),
        (("usage",), [], "usage: not an object"),
        (("extra",), 1, "unknown field 'extra'"),
    ],
)
def test_a_wrong_field_is_refused_by_its_path(path: tuple[Any, ...], value: Any, said: str) -> None:
    plain = _record()
    target: Any = plain
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(ProtocolError) as caught:
        codec.from_plain(JobRecord, plain)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(1, "stdin: int instead of bytes"), ("a", "stdin: not base64"), ("YQ==\n", "stdin: not base64")],
)
def test_bytes_are_base64_to_the_letter(value: Any, said: str) -> None:
    assert codec.from_plain(JobSpec, {"command": "c", "stdin": "YQ=="}).stdin == b"a"
    with pytest.raises(ProtocolError) as caught:
        codec.from_plain(JobSpec, {"command": "c", "stdin": value})
    assert said in str(caught.value)


def test_a_missing_field_is_refused() -> None:
    plain = _record()
    del plain["principal"]
    with pytest.raises(ProtocolError, match="principal: missing"):
        codec.from_plain(JobRecord, plain)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":NaN}', b"[" * 100_000, b"1" * 10_000, b"Infinity"])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.loads(Limits, data)


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(
        lambda plain: json.dumps(plain).encode()
    )
)
def test_no_input_gets_past_the_decoder_or_breaks_it(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.loads(JobSpec, data)


@dataclass(frozen=True, slots=True)
class _Numbers:
    ratio: float


def test_a_whole_number_serves_as_a_float() -> None:
    assert codec.loads(_Numbers, b'{"ratio":1}') == _Numbers(1.0)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" * 400, b"NaN", b"Infinity"])
def test_a_float_is_finite(number: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.loads(_Numbers, b'{"ratio":%s}' % number)


def test_every_message_type_can_be_decoded() -> None:
    for cls in (*messages.REQUESTS, *messages.ANSWERS, *messages.EVENTS):
        assert codec.field_types(cls) is not None
        with pytest.raises(ProtocolError):
            codec.from_plain(cls, {"no such": 1})


def test_errors_cross_the_wire_whole() -> None:
    from jobworker.errors import CapExceeded, InvalidField, JobNotFound, QuotaExceeded  # noqa: PLC0415

    quota = QuotaExceeded("calls", 7, 7, 0)
    for error in (
        InvalidField("limits.cpu", "is wrong", "50%"),
        JobNotFound("x"),
        CapExceeded("jobs", 7, 5),
        quota,
    ):
        back = frames.to_error(frames.failed(error))
        assert type(back) is type(error)
        assert vars(back) == vars(error)
    for forged in (
        messages.Failed("KeyboardInterrupt", ()),
        messages.Failed("JobNotFound", ()),
        messages.Failed("CapExceeded", ("a", "b", "c")),
    ):
        with pytest.raises(ProtocolError):
            frames.to_error(forged)

"""Bytes to requests: malformed ones and unknown fields are refused, by name."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField
from jobworker.gateway import requests

# A field number that no message of the contract has, as a varint with the value 1.
UNKNOWN = b"\xf8\x3f\x01"
UNKNOWN_NUMBER = "1023"
DECODERS = [pb.StartRequest.FromString, pb.StopRequest.FromString, pb.ListRequest.FromString]


def field(number: int, payload: bytes) -> bytes:
    return bytes((number << 3 | 2, len(payload))) + payload


def refused_field(data: bytes) -> str:
    with pytest.raises(InvalidField) as caught:
        requests.parse(data, pb.StartRequest.FromString)
    return caught.value.field


def test_a_request_is_what_was_sent() -> None:
    sent = pb.StartRequest(command="ls", args=["-l"], env={"A": "b"}, labels={"k": "v"})
    sent.limits.cpu = "50%"
    sent.timeout.seconds = 5
    assert requests.parse(sent.SerializeToString(), pb.StartRequest.FromString) == sent


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", field(1, b"\xff\xfe")])
def test_malformed_bytes_are_refused(data: bytes) -> None:
    assert refused_field(data) == "request"


def test_an_unknown_field_is_refused_by_its_number() -> None:
    assert refused_field(pb.StartRequest(command="ls").SerializeToString() + UNKNOWN) == UNKNOWN_NUMBER


@pytest.mark.parametrize(("number", "name"), [(5, "limits"), (7, "timeout")])
def test_so_is_one_inside_of_another_message(number: int, name: str) -> None:
    data = pb.StartRequest(command="ls").SerializeToString() + field(number, UNKNOWN)
    assert refused_field(data) == f"{name}.{UNKNOWN_NUMBER}"


def test_the_text_says_what_to_do() -> None:
    with pytest.raises(
        InvalidField, match="1023 is a field this agent does not know; upgrade the agent or drop it"
    ):
        requests.parse(UNKNOWN, pb.StartRequest.FromString)


@given(st.binary(max_size=200), st.sampled_from(DECODERS))
def test_any_bytes_are_a_request_or_refused(data: bytes, decode: type[Message]) -> None:
    with contextlib.suppress(InvalidField):
        requests.parse(data, decode)

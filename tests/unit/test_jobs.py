"""Ids and specifications: what is accepted, and what the refusals say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobworker.errors import InvalidField
from jobworker.jobs import MAX_STRING_BYTES, JobSpec, check_job_id, new_job_id
from jobworker.limits import Limits


def test_new_ids_are_valid_and_differ() -> None:
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(check_job_id(job_id) == job_id for job_id in ids)


@pytest.mark.parametrize(
    "text",
    ["", ".", "../x", "k7f3", "k7f3-9m2q-x4tz-b1cd\n", "K7F3-9M2Q-X4TZ-B1CD", "k7f3-9m2q-x4tz-b1c\0", "a" * 10240],
)
def test_what_is_not_an_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_job_id(text)
    assert caught.value.field == "job_id"
    assert check_job_id(caught.value.example)
    assert len(str(caught.value)) < 200


GOOD = JobSpec("/bin/true")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (JobSpec(""), "command"),
        (JobSpec("a\0b"), "command"),
        (replace(GOOD, args=("fine", "a\0b")), "args[1]"),
        (replace(GOOD, args=("x" * (200 * 1024),)), "args[0]"),
        (replace(GOOD, args=("x" * (MAX_STRING_BYTES + 1),)), "args[0]"),
        (replace(GOOD, args=("x" * 100_000,) * 3), "args"),
        (replace(GOOD, args=("\x01" * 60_000,)), "args"),
        (replace(GOOD, args=("x",) * 10_000), "args"),
        (replace(GOOD, args=("\ud800",)), "args[0]"),
        (replace(GOOD, env=(("A=B", "x"),)), "env"),
        (replace(GOOD, env=(("", "x"),)), "env"),
        (replace(GOOD, env=(("TOKEN", "a\0b"),)), "env[TOKEN]"),
        (replace(GOOD, env=(("A\ud800", "x"),)), "env[A\ud800]"),
        (replace(GOOD, env=(("A", "x" * MAX_STRING_BYTES),)), "env[A]"),
        (replace(GOOD, env=tuple((f"A{i}", "") for i in range(2000))), "env"),
        (replace(GOOD, workdir="relative"), "workdir"),
        (replace(GOOD, workdir="/a\0"), "workdir"),
        (replace(GOOD, labels=(("Bad Key", "x"),)), "labels"),
        (replace(GOOD, labels=(("team", "a\nb"),)), "labels[team]"),
        (replace(GOOD, labels=tuple((f"k{i}", "") for i in range(40))), "labels"),
        (replace(GOOD, limits=Limits(cpu_millis=0)), "limits.cpu"),
        (replace(GOOD, limits=Limits(memory_bytes=-1)), "limits.memory"),
        (replace(GOOD, limits=Limits(pids=0)), "limits.pids"),
        (replace(GOOD, limits=Limits(cpuset="0\n")), "limits.cpuset"),
        (replace(GOOD, limits=Limits(io_write_ops=2**32)), "limits.io_write_ops"),
        (replace(GOOD, limits=Limits(swap_bytes=0)), "limits.swap"),
        (replace(GOOD, sandbox="lax"), "sandbox"),
        (replace(GOOD, timeout_ms=-1), "timeout"),
    ],
)
def test_a_bad_specification_is_refused_by_the_field_s_name(spec: JobSpec, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        spec.check()
    assert caught.value.field == field
    assert len(str(caught.value)) < 400


def test_a_refusal_does_not_tell_a_variable_s_value() -> None:
    with pytest.raises(InvalidField) as caught:
        replace(GOOD, env=(("TOKEN", "hunter2\0"),)).check()
    assert "hunter2" not in str(caught.value)


def test_what_linux_takes_is_accepted() -> None:
    replace(
        GOOD, args=("x" * MAX_STRING_BYTES, "", "ünï", "-"), env=(("A", ""),), labels=(("a/b.c", "ü 1"),)
    ).check()


def test_bytes_that_are_not_utf8_are_kept() -> None:
    replace(GOOD, args=(b"\xff\xfe".decode("utf-8", "surrogateescape"),)).check()

"""Ids, limits and specifications: what is accepted, and what the refusals say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.errors import InvalidField
from jobworker.jobs import (
    CPU_RANGE,
    MAX_STRING_BYTES,
    MEMORY_RANGE,
    JobSpec,
    Limits,
    check_job_id,
    format_cpu,
    format_size,
    new_job_id,
    parse_cpu,
    parse_duration,
    parse_size,
)


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


@pytest.mark.parametrize(("text", "millis"), [("50%", 500), ("1%", 10), ("250%", 2500), ("12.5%", 125)])
def test_cpu_is_a_percentage_of_one_cpu(text: str, millis: int) -> None:
    assert parse_cpu(text) == millis
    assert format_cpu(millis) == text


@pytest.mark.parametrize(
    "text",
    [
        "50",
        "0%",
        "-1%",
        "50 %",
        "NaN%",
        "1e3%",
        "max\n",
        "",
        "%",
        "99999999%",
        "0.9%",
        "\u0665\u0660%",
        str(2**64) + "%",
    ],
)
def test_other_cpu_limits_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_cpu(text)
    assert caught.value.field == "limits.cpu"
    assert parse_cpu(caught.value.example)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256M", 256 << 20), ("1G", 1 << 30), ("2048Ki", 2 << 20), ("2Mi", 2 << 20), ("1048576", 1 << 20)],
)
def test_sizes_are_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["-1M", "1e9G", "1e3M", "0", "max", "max\n", "64 M", "64MB", "NaN", str(2**64), "9" * 19 + "T", ""]
)
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_size(text)
    assert caught.value.field == "limits.memory"
    assert parse_size(caught.value.example)


@given(st.integers(*MEMORY_RANGE))
def test_a_size_survives_being_shown(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(*CPU_RANGE))
def test_a_cpu_limit_survives_being_shown(millis: int) -> None:
    assert parse_cpu(format_cpu(millis)) == millis


@given(st.text(max_size=40))
def test_no_text_makes_a_limit_outside_of_its_range(text: str) -> None:
    for parse, (low, high) in ((parse_cpu, CPU_RANGE), (parse_size, MEMORY_RANGE)):
        try:
            value = parse(text)
        except InvalidField:
            continue
        assert low <= value <= high


def test_durations() -> None:
    assert [parse_duration(text, "grace") for text in ("500ms", "1.5s", "2m", "1h", "1d")] == [
        500,
        1500,
        120_000,
        3_600_000,
        86_400_000,
    ]
    for text in ("", "10", "s", "-1s", "1 s", "1.s", "1e3s"):
        with pytest.raises(InvalidField):
            parse_duration(text, "grace")


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

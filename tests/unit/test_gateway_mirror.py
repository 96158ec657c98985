"""The registry's mirror: what it knows after which events, and lists against a plain model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.errors import AgentUnavailable, JobNotFound
from jobworker.gateway import mirror as mirror_module
from jobworker.gateway.known import Known, Wanted
from jobworker.gateway.link import Lost
from jobworker.gateway.mirror import Mirror
from jobworker.jobs import JobRecord, State
from jobworker.policy import NOTHING
from jobworker.wire.messages import (
    PROTOCOL,
    JobChanged,
    JobRemoved,
    JobReply,
    LogGrew,
    PolicyIs,
    Synced,
    Welcome,
)
from support.scripted_supervisor import HOST, job_id, record

WELCOME = Welcome(PROTOCOL, HOST, "1.0", PolicyIs(NOTHING, ""))


def filled(*records: JobRecord) -> Mirror:
    mirror = Mirror()
    for message in (WELCOME, *(JobChanged(known) for known in records), Synced()):
        mirror.apply(message)
    return mirror


def ids(mirror: Mirror, wanted: Wanted | None = None, size: int = 1000) -> list[str]:
    return [known.job_id for known in mirror.page(wanted or Wanted(), None, size)]


def find(mirror: Mirror, number: int) -> Known:
    return asyncio.run(mirror.find(job_id(number)))


def test_jobs_come_newest_first() -> None:
    assert ids(filled(record(2), record(9), record(5))) == [job_id(9), job_id(5), job_id(2)]


def test_a_changed_record_takes_the_place_of_the_old_one() -> None:
    mirror = filled(record(1))
    mirror.apply(JobChanged(record(1, state=State.ENDED)))
    assert find(mirror, 1).state is State.ENDED
    assert ids(mirror) == [job_id(1)]
    assert ids(mirror, Wanted(states=frozenset({State.RUNNING}))) == []


def test_an_answer_is_news_as_well() -> None:
    mirror = filled()
    mirror.apply(JobReply(record(3)))
    assert ids(mirror) == [job_id(3)]


def test_the_log_grows_and_never_shrinks() -> None:
    mirror = filled(record(1, log_bytes=10))
    mirror.apply(LogGrew(job_id(1), 20, output_ended=False, lost_bytes=5))
    mirror.apply(LogGrew(job_id(1), 0, output_ended=True))
    assert (find(mirror, 1).log_bytes, find(mirror, 1).lost_bytes) == (20, 5)
    assert (find(mirror, 1).job().log_bytes, find(mirror, 1).job().lost_bytes) == (20, 5)
    mirror.apply(LogGrew(job_id(2), 5, output_ended=False))


def test_a_record_that_no_message_can_hold_does_no_harm_to_others() -> None:
    mirror = filled(record(1), record(2, pid=2**40), record(3))
    assert ids(mirror) == [job_id(3), job_id(1)]


def test_a_removed_job_is_gone() -> None:
    mirror = filled(record(1), record(2))
    mirror.apply(JobRemoved(job_id(1)))
    mirror.apply(JobRemoved(job_id(1)))
    assert ids(mirror) == [job_id(2)]
    with pytest.raises(JobNotFound):
        find(mirror, 1)


def test_after_a_reconnection_what_is_not_reported_again_is_gone() -> None:
    mirror = filled(record(1), record(2))
    for message in (Lost("gone"), WELCOME, JobChanged(record(2))):
        mirror.apply(message)
    assert find(mirror, 1).job_id == job_id(1), "until all are reported, a job may still come"
    mirror.apply(Synced())
    assert ids(mirror) == [job_id(2)]


def test_before_all_jobs_are_known_no_job_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.01)
    mirror = filled(record(1))
    mirror.apply(Lost("its reason"))
    with pytest.raises(AgentUnavailable, match="its reason"):
        find(mirror, 2)
    assert find(mirror, 1).job_id == job_id(1)


def test_active_jobs_are_counted() -> None:
    states = (State.PENDING, State.RUNNING, State.STOPPING, State.ENDED, State.ENDED)
    assert filled(*(record(i, state=state) for i, state in enumerate(states))).active() == 3


def test_what_is_waited_for_is_noticed() -> None:
    async def scenario() -> Known:
        mirror = filled(record(1))
        waiting = asyncio.create_task(mirror.wait_for(job_id(1), lambda known: known.state is State.ENDED))
        for change in (record(1, log_bytes=1), record(1, state=State.ENDED)):
            await asyncio.sleep(0)
            mirror.apply(JobChanged(change))
        return await waiting

    assert asyncio.run(scenario()).state is State.ENDED


def test_waiting_for_a_job_that_is_removed_ends() -> None:
    async def scenario() -> None:
        mirror = filled(record(1))
        waiting = asyncio.create_task(mirror.wait_for(job_id(1), lambda _: False))
        await asyncio.sleep(0)
        mirror.apply(JobRemoved(job_id(1)))
        await waiting

    with pytest.raises(JobNotFound):
        asyncio.run(scenario())


def test_waiting_ends_when_the_supervisor_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.01)

    async def scenario() -> None:
        mirror = filled(record(1))
        waiting = asyncio.create_task(mirror.wait_for(job_id(1), lambda _: False))
        await asyncio.sleep(0)
        mirror.apply(Lost("gone"))
        await waiting

    with pytest.raises(AgentUnavailable, match="gone"):
        asyncio.run(scenario())


LABELS = st.lists(st.sampled_from([("a", "1"), ("a", "2"), ("b", "1")]), unique=True, max_size=2).map(tuple)
RECORDS = st.builds(
    lambda number, age, state, principal, labels: record(
        number, created_ns=age, state=state, principal=principal, labels=labels
    ),
    st.integers(0, 30),
    st.integers(1, 5),
    st.sampled_from(State),
    st.sampled_from(["p", "q"]),
    LABELS,
)
WANTED = st.builds(
    Wanted,
    states=st.frozensets(st.sampled_from(State), max_size=3),
    labels=LABELS,
    principal=st.sampled_from(["", "", "p", "x"]),
    id_prefix=st.sampled_from(["", "", "0000", job_id(1)[:19], job_id(12)[:18], "zzzz"]),
    since_ns=st.none() | st.integers(0, 8),
    until_ns=st.none() | st.integers(0, 8),
)


def matches(wanted: Wanted, known: JobRecord) -> bool:
    return (
        known.state in (wanted.states or set(State))
        and known.principal in (wanted.principal or known.principal)
        and known.job_id[: len(wanted.id_prefix)] == wanted.id_prefix
        and set(wanted.labels) <= set(known.labels)
        and (wanted.since_ns or 0) <= known.created_ns < (8 << 60 if wanted.until_ns is None else wanted.until_ns)
    )


@given(st.lists(RECORDS | st.integers(0, 30), max_size=40), WANTED, st.integers(1, 7))
def test_pages_are_what_a_plain_list_gives(events: list[JobRecord | int], wanted: Wanted, size: int) -> None:
    mirror, model = filled(), dict[str, JobRecord]()
    for event in events:
        if isinstance(event, int):
            mirror.apply(JobRemoved(job_id(event)))
            model.pop(job_id(event), None)
        else:
            # What a job was born with stays.
            born = model.get(event.job_id, event)
            changed = replace(event, created_ns=born.created_ns, principal=born.principal, labels=born.labels)
            mirror.apply(JobChanged(changed))
            model[event.job_id] = changed
    expected = sorted(
        ((known.created_ns, known.job_id) for known in model.values() if matches(wanted, known)), reverse=True
    )
    before, pages = None, []
    while page := mirror.page(wanted, before, size):
        assert len(page) <= size
        pages += [(known.created_ns, known.job_id) for known in page]
        before = pages[-1]
    assert pages == expected


@given(st.lists(st.integers(0, 100), unique=True, min_size=10), st.data())
def test_jobs_that_stay_are_listed_once_while_others_come_and_go(numbers: list[int], data: st.DataObject) -> None:
    mirror = filled(*(record(number) for number in numbers))
    staying, seen, before = set(numbers), list[str](), None
    while page := mirror.page(Wanted(), before, 3):
        seen += [known.job_id for known in page]
        before = (page[-1].created_ns, page[-1].job_id)
        gone = data.draw(st.sampled_from(numbers))
        mirror.apply(JobRemoved(job_id(gone)))
        staying.discard(gone)
        mirror.apply(JobChanged(record(data.draw(st.integers(101, 200)))))
    assert len(seen) == len(set(seen))
    assert {job_id(number) for number in staying} <= set(seen)


def test_a_page_of_ten_thousand_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = filled(*(record(i, state=State.ENDED, labels=(("n", str(i % 1000)),)) for i in range(10_000)))
    looked_at = 0
    fits = Wanted.fits

    def counted(wanted: Wanted, known: Known) -> bool:
        nonlocal looked_at
        looked_at += 1
        return fits(wanted, known)

    monkeypatch.setattr(Wanted, "fits", counted)
    for wanted in (
        Wanted(),
        Wanted(states=frozenset({State.RUNNING})),
        Wanted(labels=(("n", "7"),)),
        Wanted(states=frozenset({State.ENDED}), labels=(("n", "7"),)),
        Wanted(principal="spiffe://test/user/nobody"),
        Wanted(id_prefix=job_id(5_000)),
    ):
        mirror.page(wanted, None, 10)
    assert looked_at <= 6 * 10

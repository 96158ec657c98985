"""What a client writes to a job's standard input, over calls that break anywhere: in order, whole, and once."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.upload import Upload
from jobworker.errors import InvalidField
from jobworker.jobs import MAX_STDIN_BYTES

ID = "k7f3-9m2q-x4tz-b1cd"
PATIENT = Backoff(attempts=10_000, first=0.0, longest=0.0)
BROKEN = CallFailed("UNAVAILABLE", "broken")


class Job:
    """A job's standard input as the agent takes it."""

    def __init__(self, begins: bytes = b"") -> None:
        self.data = begins
        self.ended = False

    def take(self, message: pb.WriteStdinRequest) -> pb.WriteStdinResponse:
        if message.HasField("offset") and message.offset != len(self.data):
            raise CallFailed("FAILED_PRECONDITION", "", "STDIN_OFFSET", {"taken": str(len(self.data))})
        if self.ended:
            raise CallFailed("FAILED_PRECONDITION", "", "STDIN_ENDED", {"taken": str(len(self.data))})
        self.data += message.data
        self.ended = message.end
        return pb.WriteStdinResponse(taken=len(self.data), ended=self.ended)


def one_call(upload: Upload, job: Job, cut: list[int]) -> None:
    """A call of which only so many requests arrive, and only so many answers."""
    arriving, answered = cut
    sent, answers = deque([upload.open()]), deque[pb.WriteStdinResponse]()
    while True:
        while sent:
            if not arriving:
                raise BROKEN
            arriving -= 1
            answers.append(job.take(sent.popleft()))
        if not answers:
            return
        if not answered:
            raise BROKEN
        answered -= 1
        upload.answer(answers.popleft())
        sent.extend(upload.due())


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=9), max_size=20),
    cuts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(list), max_size=30),
    begins=st.binary(max_size=5),
    end=st.booleans(),
)
def test_it_is_whole_wherever_calls_break(
    pieces: list[bytes], cuts: list[list[int]], begins: bytes, *, end: bool
) -> None:
    job, upload = Job(begins), Upload(ID, None, PATIENT)
    for piece in pieces:
        upload.add(piece)
    if end:
        upload.end()
    cuts += [[1000, 1000], [1000, 1000]]
    while not upload.nothing_is_due:
        failure = None
        try:
            one_call(upload, job, cuts.pop(0))
        except CallFailed as error:
            failure = error
        if not upload.nothing_is_due:
            upload.pause(failure)
    assert job.data == begins + b"".join(pieces)
    assert (upload.written.taken, upload.written.ended, job.ended) == (len(job.data), end, end)


def test_what_is_added_between_calls_and_answers_goes_along() -> None:
    job, upload = Job(), Upload(ID, 0, PATIENT)
    first = upload.open()
    assert (first.job_id, first.offset, upload.due()) == (ID, 0, [])
    upload.add(b"one")
    upload.answer(job.take(first))
    (one,) = upload.due()
    upload.add(b"two")
    (two,) = upload.due()
    assert not upload.nothing_is_due
    for message in (one, two):
        upload.answer(job.take(message))
    assert job.data == b"onetwo"
    upload.end()
    (last,) = upload.due()
    upload.answer(job.take(last))
    assert (job.data, upload.nothing_is_due, upload.written.ended) == (b"onetwo", True, True)


def test_pieces_are_no_larger_than_an_agent_takes() -> None:
    upload = Upload(ID, None, PATIENT)
    upload.add(bytes(2 * MAX_STDIN_BYTES + 1))
    upload.answer(pb.WriteStdinResponse())
    assert [len(message.data) for message in upload.due()] == [MAX_STDIN_BYTES, MAX_STDIN_BYTES, 1]


def test_it_holds_no_more_than_may_be_under_way() -> None:
    upload = Upload(ID, None, PATIENT)
    added = 0
    while not upload.is_full:
        upload.add(bytes(MAX_STDIN_BYTES))
        added += MAX_STDIN_BYTES
    assert added <= 1024 * 1024
    upload.answer(pb.WriteStdinResponse())
    upload.due()
    upload.answer(pb.WriteStdinResponse(taken=MAX_STDIN_BYTES))
    assert not upload.is_full


def test_what_is_under_way_is_not_copied_for_each_piece() -> None:
    upload, pieces = Upload(ID, None, PATIENT), 50_000
    upload.answer(pb.WriteStdinResponse())
    for _ in range(pieces):
        upload.add(b"x")
    upload.due()
    upload.add(b"y")
    tracemalloc.start()
    try:
        (message,) = upload.due()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (message.data, most < pieces) == (b"y", True)


def test_another_s_bytes_are_not_taken_for_its_own() -> None:
    upload = Upload(ID, None, PATIENT)
    upload.add(b"mine")
    upload.answer(pb.WriteStdinResponse(taken=10))
    upload.open()
    with pytest.raises(CallFailed, match="somebody else"):
        upload.answer(pb.WriteStdinResponse(taken=15))
    with pytest.raises(CallFailed, match="somebody else"):
        upload.answer(pb.WriteStdinResponse(taken=9))


def test_what_another_attempt_cannot_mend() -> None:
    upload = Upload(ID, 3, PATIENT)
    upload.open()
    refused = CallFailed("FAILED_PRECONDITION", "", "STDIN_OFFSET", {"taken": "0"})
    with pytest.raises(CallFailed) as caught:
        upload.pause(refused)
    assert caught.value is refused


def test_an_answer_that_grpc_has_lost_is_asked_for_again() -> None:
    upload = Upload(ID, None, PATIENT)
    upload.open()
    upload.pause(CallFailed("INTERNAL", "Internal error from Core"))
    of_the_agent = CallFailed("INTERNAL", "what its own log says", "INTERNAL")
    with pytest.raises(CallFailed) as caught:
        upload.pause(of_the_agent)
    assert caught.value is of_the_agent


def test_an_agent_that_stays_away_is_given_up() -> None:
    upload = Upload(ID, None, Backoff(attempts=2, first=0.0))
    for _ in range(2):
        upload.pause(BROKEN)
    with pytest.raises(CallFailed, match="broken"):
        upload.pause(BROKEN)


def test_calls_that_lasted_long_and_break_idle_are_no_attempts_in_vain() -> None:
    upload = Upload(ID, None, Backoff(attempts=1, first=0.0, longest=0.0))
    for _ in range(5):
        upload.open()
        upload.answer(pb.WriteStdinResponse())
        upload.pause(BROKEN)
    upload.open()
    with pytest.raises(CallFailed, match="broken"):
        # Nobody has answered this one, however long it took.
        upload.pause(BROKEN)


def test_calls_that_break_at_once_are_attempts_in_vain() -> None:
    upload = Upload(ID, None, Backoff(attempts=1, first=0.0, longest=60.0))
    for expected in (contextlib.nullcontext(), pytest.raises(CallFailed, match="broken")):
        upload.open()
        upload.answer(pb.WriteStdinResponse())
        with expected:
            upload.pause(BROKEN)


@pytest.mark.parametrize("offset", [-1, 2**63, 2**64])
def test_the_offset_is_one_that_there_can_be(offset: int) -> None:
    with pytest.raises(InvalidField, match="offset"):
        Upload(ID, offset, PATIENT)

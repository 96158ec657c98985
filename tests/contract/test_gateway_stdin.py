"""WriteStdin over mutual TLS: pieces and answers, back-pressure, and how a call ends."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import gateway
from support.root_side import RootSide
from support.waiting import until

pytestmark = pytest.mark.root

Stub = JobWorkerServiceStub
PIECE = 64 * 1024


class Call:
    """One call, whose messages a test sends when it likes."""

    def __init__(self, stub: Stub, job_id: str, **first: Any) -> None:
        self._requests: SimpleQueue[pb.WriteStdinRequest | None] = SimpleQueue()
        self.send(job_id=job_id, **first)
        self.answers = stub.WriteStdin(iter(self._requests.get, None), timeout=60)

    def send(self, **fields: Any) -> None:
        self._requests.put(pb.WriteStdinRequest(**fields))

    def hang_up(self) -> None:
        self._requests.put(None)

    def ask(self, **fields: Any) -> pb.WriteStdinResponse:
        self.send(**fields)
        return next(self.answers)

    def error(self) -> Any:
        """How the call ends, whatever it answers before."""
        with pytest.raises(grpc.RpcError) as caught:
            list(self.answers)
        self.hang_up()
        return caught.value


def start(stub: Stub, *command: str, **fields: Any) -> str:
    request = pb.StartRequest(command=command[0], args=command[1:], stdin_open=True, **fields)
    return stub.Start(request).job.id


def output(stub: Stub, job_id: str) -> bytes:
    messages = stub.Stream(pb.StreamRequest(job_id=job_id, follow=True), timeout=60)
    return b"".join(message.chunk.data for message in messages)


def query(stub: Stub, job_id: str) -> job_pb2.Job:
    return stub.Query(pb.QueryRequest(job_id=job_id)).job


def taken_of(error: Any) -> int:
    return int(gateway.detail(error, error_details_pb2.ErrorInfo()).metadata["taken"])


def test_each_piece_is_answered(stub: Stub) -> None:
    job_id = start(stub, "cat", stdin=b"zero ")
    call = Call(stub, job_id)
    assert next(call.answers).taken == 5
    assert call.ask(data=b"one ").taken == 9
    assert query(stub, job_id).stdin_bytes == 9
    last = call.ask(data=b"two", end=True)
    assert (last.taken, last.ended) == (12, True)
    assert list(call.answers) == []
    call.hang_up()
    assert output(stub, job_id) == b"zero one two"
    job = query(stub, job_id)
    assert (job.stdin_open, job.stdin_bytes) == (False, 12)


def test_much_of_it(stub: Stub) -> None:
    data = os.urandom(2 * 1024 * 1024 + 5)
    job_id = start(stub, "sha256sum")

    def requests() -> Iterator[pb.WriteStdinRequest]:
        yield pb.WriteStdinRequest(job_id=job_id, offset=0, data=data[:PIECE])
        for at in range(PIECE, len(data), PIECE):
            yield pb.WriteStdinRequest(data=data[at : at + PIECE], end=at + PIECE >= len(data))

    answers = list(stub.WriteStdin(requests(), timeout=60))
    assert (answers[-1].taken, answers[-1].ended) == (len(data), True)
    assert output(stub, job_id) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


def test_the_end_of_a_call_is_not_the_end_of_the_input(stub: Stub) -> None:
    job_id = start(stub, "cat")
    for offset, word in ((0, b"one "), (4, b"two ")):
        call = Call(stub, job_id, offset=offset, data=word)
        call.hang_up()
        assert [answer.taken for answer in call.answers] == [offset + 4]
    assert query(stub, job_id).stdin_open
    (last,) = stub.WriteStdin(iter([pb.WriteStdinRequest(job_id=job_id, end=True)]), timeout=60)
    assert (last.taken, last.ended) == (8, True)
    assert output(stub, job_id) == b"one two "


def test_a_job_that_does_not_read_stops_the_answers_and_nothing_else(stub: Stub) -> None:
    job_id = start(stub, "sleep", "1000")
    call = Call(stub, job_id, data=bytes(PIECE))
    assert next(call.answers).taken == PIECE
    for _ in range(20):
        call.send(data=bytes(PIECE))
    assert next(call.answers).taken == 2 * PIECE
    # The third is under way, and what is behind it is not even read.
    other = start(stub, "cat")
    assert next(Call(stub, other, data=b"x", end=True).answers).ended
    assert output(stub, other) == b"x"
    stub.Stop(pb.StopRequest(job_id=job_id, force=True))
    error = call.error()
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "STDIN_ENDED")
    assert "the job has ended" in error.details()
    assert taken_of(error) == 2 * PIECE


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("job_id", {"job_id": "k7f3-9m2q-x4tz-b1cd"}),
        ("offset", {"offset": 1}),
        ("data", {"data": bytes(PIECE + 1)}),
    ],
)
def test_later_messages_that_make_no_sense(stub: Stub, field: str, fields: dict[str, Any]) -> None:
    job_id = start(stub, "cat")
    call = Call(stub, job_id, data=b"x")
    call.send(**fields)
    error = call.error()
    assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", field)
    assert query(stub, job_id).stdin_bytes == 1


def test_first_messages_that_make_no_sense(stub: Stub) -> None:
    job_id = start(stub, "cat")
    assert gateway.code(Call(stub, "0000-0000-0000-0000").error()) == "NOT_FOUND"
    assert gateway.violated_field(Call(stub, "nonsense").error()) == "job_id"
    assert gateway.violated_field(Call(stub, job_id, data=bytes(PIECE + 1)).error()) == "data"
    assert gateway.violated_field(Call(stub, job_id, offset=2**64 - 1).error()) == "offset"


def test_an_offset_that_is_not_where_it_has_got_to(stub: Stub) -> None:
    job_id = start(stub, "cat", stdin=b"four")
    error = Call(stub, job_id, offset=0, data=b"again").error()
    assert (gateway.code(error), gateway.reason(error), taken_of(error)) == (
        "FAILED_PRECONDITION",
        "STDIN_OFFSET",
        4,
    )


def test_a_job_without_an_open_one(stub: Stub) -> None:
    job_id = stub.Start(pb.StartRequest(command="sleep", args=["1000"])).job.id
    error = Call(stub, job_id, data=b"x").error()
    assert (gateway.reason(error), taken_of(error)) == ("STDIN_ENDED", 0)
    assert "stdin_open" in error.details()
    stub.Stop(pb.StopRequest(job_id=job_id, force=True))


def test_who_waits_for_room_is_heard_after_the_death_of_the_supervisor(side: RootSide, stub: Stub) -> None:
    job_id = start(stub, "sh", "-c", "mkfifo go; read go < go; wc -c")
    workdir = query(stub, job_id).workdir
    side.wait_for(lambda: os.path.exists(os.path.join(workdir, "go")))
    call = Call(stub, job_id, data=bytes(PIECE))
    call.send(data=bytes(PIECE - 100))
    call.send(data=bytes(PIECE))
    assert [next(call.answers).taken for _ in range(2)] == [PIECE, 2 * PIECE - 100]
    # Of the third there was room for the beginning, and what is told later was answered later.
    until(lambda: query(stub, job_id).stdin_bytes, 2 * PIECE)
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    side.wait_for(lambda: bool(side.supervisor_pid()))
    with open(os.path.join(workdir, "go"), "w") as go:
        go.write("go\n")
    assert next(call.answers).taken == 3 * PIECE - 100
    assert call.ask(end=True).ended
    call.hang_up()
    assert output(stub, job_id) == f"{3 * PIECE - 100}\n".encode()

"""`worker-client stream`: forms, parts and times of what is asked for."""

from __future__ import annotations

import json
import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted
from support.terminals import terminal
from support.unblocking import output_read_late

ID = "k7f3-9m2q-x4tz-b1cd"


def lines(offset: int, data: bytes, stop: int) -> pb.StreamResponse:
    return pb.StreamResponse(chunk=pb.OutputChunk(offset=offset, data=data, resume_offset=stop))


def test_json_of_a_stream(agent: scripted.ScriptedAgent) -> None:
    end = pb.OutputEnd(offset=6, output_ended=True, data=b'{"type":"line","text":"3"}\n')
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [
            lines(0, b'{"type":"line","text":"1"}\n{"type":"line","text":"2"}\n', 2),
            pb.StreamResponse(gap=pb.OutputGap(offset=2, length=3, reason="expired")),
            pb.StreamResponse(end=end),
        ]
    )
    told = [json.loads(line) for line in agent.cli("logs", ID, "--format", "json", "-t").stdout.splitlines()]
    assert told == [
        {"type": "line", "text": "1"},
        {"type": "line", "text": "2"},
        {"type": "gap", "offset": 2, "length": 3, "reason": "expired"},
        {"type": "line", "text": "3"},
        {"type": "end", "offset": 6, "output_ended": True},
    ]
    assert agent.requests[0].format == pb.OUTPUT_FORMAT_JSON


def test_json_is_harmless_on_a_terminal(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [lines(0, b'{"text":"\x1b]0;evil\x07"}\n', 1), scripted.end(1)]
    )
    with terminal(agent.command("stream", ID, "--format", "json")) as shown:
        assert shown.end() == 0
        assert b'{"text":"\\x1b]0;evil\\x07"}\r\n{"type":"end"' in shown.shown
    # Who reads it as JSON gets what came.
    assert b'"\x1b]0;evil\x07"' in agent.cli("stream", ID, "--format", "json").stdout


def test_what_is_no_text_goes_on_as_it_came(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([lines(0, b"\xff\n", 1), scripted.end(1)])
    done = agent.cli("stream", ID, "--format", "json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b'\xff\n{"type":"end"')


@pytest.mark.parametrize("flags", [("--lines",), ("--timestamps",), ("--lines", "-t", "--compress")])
def test_whole_lines(agent: scripted.ScriptedAgent, flags: tuple[str, ...]) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([lines(0, b"a\\xff\n", 3), scripted.end(3)])
    done = agent.cli("stream", ID, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\\xff\n", b"")
    (request,) = agent.requests
    assert (request.format, request.timestamps) == (
        pb.OUTPUT_FORMAT_TEXT,
        len({"--timestamps", "-t"} & {*flags}) > 0,
    )


def test_a_part_of_a_stream(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([scripted.chunk(5, b"ab\n"), scripted.end(8)])
    times = ("--since", "1970-01-01T01:00:01.5+01:00", "--until", "1970-01-01T00:00:02Z")
    done = agent.cli("stream", ID, "--tail", "3", *times)
    since, until = Timestamp(seconds=1, nanos=500_000_000), Timestamp(seconds=2)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ab\n", b"")
    assert agent.requests == [pb.StreamRequest(job_id=ID, tail_lines=3, since=since, until=until)]


def test_a_duration_back_is_from_now(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([scripted.end(0)])
    before = time.time_ns()
    assert agent.cli("stream", ID, "--since", "10m").returncode == 0
    (request,) = agent.requests
    assert before <= request.since.ToNanoseconds() + 600 * 10**9 <= time.time_ns()


def test_no_output_is_lost_where_it_does_not_block(agent: scripted.ScriptedAgent) -> None:
    pieces = [bytes([number]) * 100_000 for number in range(10)]
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [*(scripted.chunk(number * 100_000, data) for number, data in enumerate(pieces)), scripted.end(1_000_000)]
    )
    assert output_read_late(agent.command("stream", ID)) == (0, b"".join(pieces))

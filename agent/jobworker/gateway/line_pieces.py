"""Parts of a log as messages of whole lines."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway import pieces
from jobworker.gateway.formats import rendered
from jobworker.gateway.index import UNKNOWN, Span
from jobworker.gateway.lines import Lines, Standing, cell_end
from jobworker.gateway.pieces import Part, Piece
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segment
from jobworker.wire.output_index import LOST, NOT_WRITTEN

# After so many of one step, others have their turn.
_MAX_LINES = 2_000
_MAX_RUNS = 256


@dataclass(frozen=True, slots=True)
class Step:
    """What there is to send, and where that leads."""

    pieces: tuple[Piece, ...]
    standing: Standing


def step(segment: Segment, part: Part, before: Standing) -> Step:
    """Read on, to the end of a cell at the most, or over a gap.

    Args:
        segment: that holds the part.
        part: what there is, from where the reader stands.
        before: where that is.

    Raises:
        OSError: the disk fails.
    """
    lines, source, start = Lines(before), part.log.source, part.offset
    end = min(part.end, cell_end(start))
    data = segment.read(start, end - start)
    room = _MAX_LINES
    for count, run in enumerate(segment.index.runs(start, end, source, timed=True)):
        if not room or count == _MAX_RUNS:
            break
        if run.start == run.stop:
            lines.reach(run.stop)
            continue
        written = data[run.start - start : run.stop - start]
        if run.source == LOST or not written:
            # All that is missing, which may go over many cells.
            missing = segment.index.run(run.start, part.end, source, timed=True)
            if run.source == LOST:
                return _over(part, before, lines, missing, NOT_WRITTEN)
            stop = segment.missing_until(run.start, missing.stop)
            return _over(part, before, lines, missing._replace(stop=stop), part.why_missing(segment))
        taken = _first_lines(written, room)
        room -= taken.count(b"\n")
        lines.feed(run.start, taken, run.source, run.time_ns)
        if len(taken) < run.stop - run.start:
            break
    else:
        lines.reach(end)
    return Step(_chunk(part, before, lines), lines.standing())


def pass_over(part: Part, before: Standing) -> Step:
    """Go on behind a part in which there is nothing that is wanted."""
    lines = Lines(before)
    lines.pass_over(part.end)
    return Step(_chunk(part, before, lines), lines.standing())


def over(part: Part, before: Standing, reason: str) -> Step:
    """Go on behind a part that cannot be had."""
    return _over(part, before, Lines(before), Span(part.offset, part.end, LOST, 0), reason)


def ending(log: Log, at: Standing, *, output_ended: bool) -> Piece:
    """The last message. What has no newline comes with it if the output has ended, and else is still to come."""
    if not output_ended:
        return pieces.ending(at.resume, output_ended=False)
    rest = Lines(at).cut(at.read, goes_on=False)
    return pieces.ending(at.read, output_ended=True, lines=rendered(log, rest))


def _first_lines(data: bytes, count: int) -> bytes:
    """So many whole lines; everything if it holds fewer."""
    split = data.split(b"\n", count)
    return data[: len(data) - len(split[count])] if len(split) > count else data


def _over(part: Part, before: Standing, lines: Lines, missing: Span, reason: str) -> Step:
    """Tell of a gap, but not what of it was told before."""
    told, start = _chunk(part, before, lines), max(missing.start, before.told)
    cut = lines.cut(missing.start, goes_on=True)
    if start < missing.stop:
        # Who was told of the beginning of the gap was told of these with it.
        data = rendered(part.log, cut if start == missing.start else ())
        told += (pieces.gap(part.log, start, missing.stop, reason, data),)
    lines.skip(missing.stop)
    return Step(told, lines.standing())


def _chunk(part: Part, before: Standing, lines: Lines) -> tuple[Piece, ...]:
    if not lines.blocks:
        return ()
    chunk = pb.OutputChunk(
        offset=before.told,
        data=rendered(part.log, lines.blocks),
        source=pieces.SOURCES[part.log.source or UNKNOWN],
        resume_offset=lines.told,
    )
    return (Piece(pb.StreamResponse(chunk=chunk).SerializeToString(), lines.told),)

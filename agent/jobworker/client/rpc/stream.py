"""A job's output across broken connections: resumed at the right offset, with no gap and no repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import CallFailed
from jobworker.client.output import Chunk, End, Gap, Item, Lines
from jobworker.client.rpc import requests
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.retries import UNAVAILABLE, Breaks
from jobworker.errors import ProtocolError
from jobworker.jobs import Source

_SOURCES = {source.value: source for source in Source}


class Position:
    """Where a reader stands in a job's output, whatever the streams it reads from repeat or leave out.

    Attributes:
        offset: behind the last byte that was given out.
        unknown: the agent has yet to tell where the stream begins.
    """

    def __init__(self, offset: int, *, filtered: bool, unknown: bool = False) -> None:
        self.offset = offset
        self.unknown = unknown
        # With one source only, the offsets that are skipped are the other one's.
        self._may_skip = filtered

    def cut(self, data: bytes, offset: int) -> Lines:
        """The lines that a gap cuts, or the output's end, at an offset."""
        before, self.offset = self.offset, offset
        return Lines(before, data, offset)

    def accept(self, item: Item) -> Iterator[Item]:
        """What is new of this item, behind a gap for what is missing before it."""
        if self.unknown:
            self.offset, self.unknown = item.offset, False
        missing = item.offset - self.offset
        if missing > 0:
            if not self._may_skip:
                yield Gap(self.offset, missing, "the agent left it out")
            self.offset = item.offset
        if isinstance(item, End):
            yield item
        elif item.stop > self.offset:
            new = _behind(item, self.offset)
            self.offset = item.stop
            yield new


def _behind(item: Chunk | Lines | Gap, offset: int) -> Chunk | Lines | Gap:
    """The part of an item from an offset within it on; of lines, which have no parts, all."""
    skip = offset - item.offset
    match item:
        case Chunk(data=data) if skip:
            return replace(item, offset=offset, data=data[skip:])
        case Gap(length=length, reason=reason):
            return Gap(offset, length - skip, reason)
        case _:
            return item


class Resumption:
    """A stream that is opened again wherever it breaks; progress is output, or a stream that lasted long.

    Args:
        position: where to begin.
        backoff: attempts without progress, and their pauses. Longer than the longest of them is long.

    Attributes:
        ended: the last item has come.
    """

    def __init__(self, position: Position, backoff: Backoff) -> None:
        self.position = position
        self.ended = False
        self._long = backoff.longest
        self._breaks = Breaks(backoff)
        self.open()

    def open(self) -> None:
        """The stream is being opened."""
        self._opened, self._before = time.monotonic(), self.position.offset

    def items(self, response: pb.StreamResponse) -> Iterator[Item]:
        """What is new in an answer.

        Raises:
            ProtocolError: no output has such an offset or time.
        """
        for item in _accepted(response, self.position):
            self.ended = isinstance(item, End)
            yield item
        if self.position.offset > requests.MAX_OFFSET:
            raise ProtocolError(f"output up to {self.position.offset}, behind which there can be none")

    def pause(self, failure: CallFailed | None) -> float:
        """How long to wait before the stream is opened again, in seconds; `failure` is how it broke.

        Raises:
            CallFailed: another attempt cannot mend it, or there were too many.
        """
        if self.position.offset > self._before or time.monotonic() - self._opened > self._long:
            self._breaks.progress()
        return self._breaks.pause(failure or CallFailed(UNAVAILABLE, "the stream broke off before its end"))


def _accepted(response: pb.StreamResponse, position: Position) -> Iterator[Item]:
    item, cut = _item(response), response.gap.data or response.end.data
    if item is None:
        return
    if cut and item.offset >= position.offset:
        yield position.cut(cut, item.offset)
    yield from position.accept(item)


def _item(response: pb.StreamResponse) -> Item | None:
    """One message as an item; `None` for a kind that this client does not know."""
    match response.WhichOneof("item"):
        case "chunk":
            chunk = response.chunk
            if chunk.resume_offset:
                return Lines(chunk.offset, chunk.data, chunk.resume_offset)
            return Chunk(chunk.offset, chunk.data, _SOURCES.get(chunk.source), _time_ns(chunk.time))
        case "gap":
            return Gap(response.gap.offset, response.gap.length, response.gap.reason)
        case "end":
            return End(response.end.offset, response.end.output_ended)
        case _:
            return None


def _time_ns(time_told: Timestamp) -> int:
    try:
        return time_told.ToNanoseconds()
    except ValueError:
        raise ProtocolError("output with a time that is none") from None

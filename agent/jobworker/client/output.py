"""A job's output as a stream of frozen items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from jobworker.jobs import Source


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes as the job wrote them.

    Attributes:
        offset: the absolute offset of the first byte; one offset runs through all of the job's output.
        source: who wrote them; `None` where the chunk may hold both.
        time_ns: when the agent received the first of them, in nanoseconds of Unix time; 0 where that was not asked
            for or is not known.
    """

    offset: int
    data: bytes
    source: Source | None = None
    time_ns: int = 0

    @property
    def stop(self) -> int:
        """The offset behind the last byte."""
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines, as text or as JSON objects.

    Attributes:
        offset: all lines that end up to here came before.
        stop: these are all that end up to here; where a stream of lines would go on.
    """

    offset: int
    data: bytes
    stop: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of output that cannot be had any more, and why."""

    offset: int
    length: int
    reason: str

    @property
    def stop(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class End:
    """The last item of a stream.

    Attributes:
        offset: where a later stream would go on.
        output_ended: the job's output has ended as well, so there is nothing to go on with.
    """

    offset: int
    output_ended: bool


Item: TypeAlias = Chunk | Lines | Gap | End

"""How the output of a job comes to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobworker.jobs import Source
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.pump import Pump

ID = "k7f3-9m2q-x4tz-b1cd"
# Fits into a pipe, with something behind it.
_SEGMENT = 1 << 15
_MANY = 100


@pytest.mark.parametrize("written", [(b"out", b"error"), (b"", b"error"), (b"x" * _SEGMENT, b"")])
def test_who_was_passed_its_pipes_does_not_keep_it_from_its_end(
    tmp_path: Path, one_life: None, written: tuple[bytes, bytes]
) -> None:
    del one_life
    loop, log = Loop(), OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, _SEGMENT)
    pairs = [os.pipe2(os.O_NONBLOCK) for _ in Source]
    pieces: list[None] = []

    def flood() -> None:
        """Writes to what is still read after each piece, so that no round finds it empty."""
        pieces.append(None)
        if pump.is_done or len(pieces) > _MANY:
            loop.stop()
            return
        for source, (_, writing) in zip(Source, pairs, strict=True):
            if pump.pipe_of(source) is not None:
                os.write(writing, b"not the job's")

    def nothing() -> None: ...

    pipes = {reading: source for source, (reading, _) in zip(Source, pairs, strict=True)}
    pump = Pump(loop, Log("error"), ID, log, pipes, grew=flood, closed=nothing, losing=nothing)
    for (_, writing), data in zip(pairs, written, strict=True):
        os.write(writing, data)
    pump.no_writer_is_left()
    loop.call_after(0, pump.drain)
    loop.run()
    assert pump.is_done
    assert log.size == sum(map(len, written))
    assert {path.name for path in tmp_path.iterdir()} == {f"job_{ID}.log", f"job_{ID}.idx"}
    log.close()

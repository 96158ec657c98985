"""A log that nobody reads holds up no job."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from support.root_side import root_side


def fill(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"\n" * 512)


def empty(pipe: int) -> list[bytes]:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            data += os.read(pipe, 1 << 16)
    return data.splitlines()


def test_jobs_go_on_while_nobody_reads_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    with contextlib.ExitStack() as undo:
        pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        wrapper = ("/bin/sh", "-c", f'exec "$@" 2>{path}', "sh")
        side = undo.enter_context(root_side(str(tmp_path), wrapper=wrapper))
        # An agent that waits for a reader finds that there is none any more, and ends.
        undo.callback(os.close, pipe)
        link = side.link(subscribe=True)
        fill(pipe)
        unread = [link.wait_ended(link.start("/bin/echo", "x").job_id) for _ in range(3)]
        assert [link.read_log(record) for record in unread] == [b"x\n"] * 3
        empty(pipe)
        read = [link.start("/bin/true") for _ in range(2)]
        lines = [json.loads(line) for line in empty(pipe)]
        assert [(line["event"], line["job"]) for line in lines] == [("job started", job.job_id) for job in read]
        assert [line.get("log_lines_lost") for line in lines] == [len(unread), None]

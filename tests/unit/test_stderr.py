"""The root side's log in front of who does not read it: nothing waits, no line is torn, what is lost is told."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tty

import pytest

_COUNT = 3_000
_DEADLINE = 30
# In which a terminal's driver has passed on what it was given.
_SETTLED = 0.5
_LINES = """
import os, sys
from jobworker.supervisor.log import Log
count, length, uid = map(int, sys.argv[1:])
if uid:
    # What root has opened is not its own to open once more.
    os.setresuid(uid, uid, uid)
log = Log("info")
for number in range(count):
    log.info("line", number=number, text="x" * length)
print("not held up", flush=True)
sys.stdin.readline()
log.info("line", number=count)
log.info("line", number=count + 1)
"""


def stream() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return ours, theirs


ENDS = {"pipe": os.pipe, "stream": stream, "terminal": terminal}


def read(fd: int, seconds: float | None) -> bytes:
    """What is there now, or with None all that comes until the other end is closed."""
    data = b""
    # Linux says so that the other end of a terminal is closed.
    with contextlib.suppress(OSError):
        while select.select([fd], [], [], seconds)[0] and (piece := os.read(fd, 1 << 16)):
            data += piece
    return data


def fields(line: str) -> dict[str, int]:
    with contextlib.suppress(json.JSONDecodeError):
        return {name: value for name, value in json.loads(line).items() if type(value) is int}
    # As a person gets it.
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line)}


@pytest.mark.parametrize("length", [10, 9_999])
@pytest.mark.parametrize(
    ("kind", "uid"), [*((kind, 0) for kind in ENDS), pytest.param("pipe", 65_534, marks=pytest.mark.root)]
)
def test_who_does_not_read_it_holds_up_nobody(kind: str, uid: int, length: int) -> None:
    reading, writing = ENDS[kind]()
    command = [sys.executable, "-c", _LINES, str(_COUNT), str(length), str(uid)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing)
    # A file that is open for others as well stays as it was.
    assert os.get_blocking(writing)
    assert process.stdin
    assert process.stdout
    with process:
        try:
            assert select.select([process.stdout], [], [], _DEADLINE)[0], "the log waits"
            assert process.stdout.readline() == b"not held up\n"
            assert os.get_blocking(writing)
            os.close(writing)
            text = read(reading, _SETTLED)
            process.stdin.write(b"\n")
            process.stdin.close()
            text += read(reading, None)
        finally:
            process.kill()
    os.close(reading)
    expected = 0
    for line in map(fields, text.decode().splitlines()):
        expected += line.get("log_lines_lost", 0)
        assert line["number"] == expected
        expected += 1
    assert expected == _COUNT + 2
    # There was no room for all of them, and at the end there was again.
    assert "log_lines_lost" in text.decode()
    assert "log_lines_lost" not in text.decode().splitlines()[-1]


def test_nobody_at_all() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", _LINES, "10", "10", "0"]
    ended = subprocess.run(command, input=b"\n", stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stdout) == (0, b"not held up\n")


@pytest.mark.parametrize("kind", ENDS)
def test_who_does_not_read_it_keeps_nobody_from_dying_of_a_bug(kind: str) -> None:
    program = "from jobworker.wire import stderr\nstderr.replace()\nprint('begun', flush=True)\ninput()\n1 / 0\n"
    reading, writing = ENDS[kind]()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"begun\n"
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"\n")
            os.set_blocking(writing, True)
            process.communicate(b"\n", timeout=_DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 1
    os.close(writing)
    os.close(reading)


def test_the_traceback_is_told() -> None:
    program = "from jobworker.wire import stderr\nstderr.replace()\nraise OSError('caf\\u00e9 \\udcff')\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == 1
    lines = ended.stderr.decode().splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "OSError: café \\udcff")

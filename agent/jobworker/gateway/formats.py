"""Lines of output as TEXT and as JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from json.encoder import encode_basestring_ascii as quoted

from jobworker.chain import stamp
from jobworker.gateway.lines import Block
from jobworker.gateway.seek import Log
from jobworker.jobs import OutputFormat, Source

# Behind a piece of a line that goes on, in TEXT.
_GOES_ON = "\N{HORIZONTAL ELLIPSIS}\n".encode()

_SOURCES = {source.value: quoted(source.name) for source in Source}

# The last digits of a time, and its Z.
_BEYOND_MILLIS = 7
# As wide as a time.
_NO_TIME = f"{'-':24} ".encode()


def rendered(log: Log, blocks: Iterable[Block]) -> bytes:
    """Lines in the form that a log was asked for in."""
    if log.format is OutputFormat.JSON:
        return _json(blocks)
    return b"".join(map(_timed if log.timed else _text, blocks))


def _text(block: Block) -> bytes:
    """The lines as they are; of bytes that are not UTF-8 their numbers, with a backslash and an x."""
    data = block.data
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode(errors="backslashreplace").encode()
    if block.goes_on:
        return data + _GOES_ON
    return data if data.endswith(b"\n") else data + b"\n"


def _timed(block: Block) -> bytes:
    time = _time(block)
    before = f"{time[:-_BEYOND_MILLIS]}Z ".encode() if time else _NO_TIME
    return before + _text(block)[:-1].replace(b"\n", b"\n" + before) + b"\n"


def _json(blocks: Iterable[Block]) -> bytes:
    """One object for each line, in ASCII, from which its bytes can be had back."""
    return "".join(piece for block in blocks for piece in _objects(block)).encode()


def _objects(block: Block) -> Iterator[str]:
    lines = block.data.split(b"\n")
    time = f'"{told}"' if (told := _time(block)) else "null"
    origin = f'"source":{_SOURCES.get(block.source, "null")},"time":{time}'
    if lines.pop():
        yield _object(block.offset, block.end, f'{origin},"partial":true', block.data)
    elif len(lines) == 1:
        yield _object(block.offset, block.end, origin, lines[0])
    else:
        offset = block.offset
        for line in lines:
            end = offset + len(line) + 1
            yield _object(offset, end, origin, line)
            offset = end


def _object(offset: int, end: int, origin: str, line: bytes) -> str:
    return f'{{"type":"line","offset":{offset},"end":{end},{origin},{_content(line)}}}\n'


def _content(line: bytes) -> str:
    try:
        return f'"text":{quoted(line.decode())}'
    except UnicodeDecodeError:
        return f'"base64":"{base64.b64encode(line).decode()}"'


def _time(block: Block) -> str:
    return stamp(block.time_ns) if block.time_ns else ""

"""Frames: one message each, bounded, strictly decoded.

A frame is JSON: `{"type": …, "seq": …, "body": …}`. `seq` ties an answer to its request; events have 0.
The kernel keeps messages whole, so there is no length to lie about.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from jobworker import codec
from jobworker.errors import JobWorkerError, ProtocolError
from jobworker.wire import messages, sockets

# What fits the send buffer of an unprivileged sender.
MAX_FRAME = 400 * 1024

_TYPES = {cls.__name__: cls for cls in (*messages.REQUESTS, *messages.ANSWERS, *messages.EVENTS)}
_ERRORS = {cls.__name__: cls for cls in JobWorkerError.__subclasses__()}


@dataclass(frozen=True, slots=True)
class Frame:
    """One message as received."""

    seq: int
    message: Any
    fds: sockets.Descriptors


@dataclass(frozen=True, slots=True)
class _Envelope:
    type: str
    seq: int


def encode(message: Any, seq: int) -> bytes:
    """Encode one message.

    Raises:
        ProtocolError: it does not fit a frame.
    """
    body = codec.dumps(message)
    frame = b'{"type":"%s","seq":%d,"body":%s}' % (type(message).__name__.encode(), seq, body)
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(frame)} bytes, more than {MAX_FRAME}")
    return frame


def receive(sock: socket.socket, allowed: tuple[type[Any], ...]) -> Frame | None:
    """Receive one frame whose message is of one of the allowed types; None at the end of the connection.

    Raises:
        BlockingIOError: nothing is there.
        ProtocolError: what came is not such a frame; its descriptors are closed.
        OSError: the peer is gone.
    """
    data, fds, whole = sockets.receive(sock, MAX_FRAME)
    try:
        if not whole:
            raise ProtocolError("a frame that is too large or carries too many descriptors")
        if not data and not fds:
            return None
        return _decode(data, fds, allowed)
    except ProtocolError:
        fds.close()
        raise


def _decode(data: bytes, fds: sockets.Descriptors, allowed: tuple[type[Any], ...]) -> Frame:
    plain = codec.parse(data)
    if type(plain) is not dict:
        raise ProtocolError("a frame that is not an object")
    body = plain.pop("body", None)
    envelope = codec.from_plain(_Envelope, plain)
    cls = _TYPES.get(envelope.type)
    if cls is None or cls not in allowed:
        raise ProtocolError(f"{envelope.type!r:.60} is not a message that may come here")
    return Frame(envelope.seq, codec.from_plain(cls, body), fds)


def failed(error: JobWorkerError) -> messages.Failed:
    """The message that carries an error, whose fields are strings and integers."""
    return messages.Failed(type(error).__name__, tuple(str(value) for value in vars(error).values()))


def to_error(message: messages.Failed) -> JobWorkerError:
    """The error that a message carries.

    Raises:
        ProtocolError: there is no such error.
    """
    cls = _ERRORS.get(message.error)
    if cls is None:
        raise ProtocolError(f"unknown error {message.error!r:.60}")
    types = codec.field_types(cls)
    if len(types) != len(message.fields):
        raise ProtocolError(f"{message.error}: {len(message.fields)} fields instead of {len(types)}")
    try:
        return cls(*(kind(text) for kind, text in zip(types, message.fields, strict=True)))
    except ValueError:
        raise ProtocolError(f"{message.error}: a field that is not a number") from None

"""Bytes to request messages, strictly: what this agent does not know, it must not ignore."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from jobworker.errors import InvalidField


def parse(data: bytes, decode: Callable[[bytes], Message]) -> Message:
    """Decode a request.

    Raises:
        InvalidField: it is malformed, or holds a field that this agent does not know. A client that is newer
            than the agent may mean a limit by it.
    """
    try:
        message = decode(data)
    except DecodeError:
        raise InvalidField("request", "is not a message of this call") from None
    path = next(_unknown(message, ""), None)
    if path is not None:
        number = path.rpartition(".")[2]
        problem = f"field number {number} is a field this agent does not know; upgrade the agent or drop it"
        raise InvalidField(path, problem)
    return message


def _unknown(message: Message, path: str) -> Iterator[str]:
    """Paths of unknown fields, with the number in place of the name."""
    for field in cast("Iterable[Any]", UnknownFieldSet(message)):  # iterable, other than its stub says
        yield f"{path}{field.field_number}"
    for descriptor, value in message.ListFields():
        # Of a map's entries the parser itself drops what is unknown; none of the contract's holds messages.
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(descriptor):
            for item in value if descriptor.is_repeated else (value,):
                yield from _unknown(item, f"{path}{descriptor.name}.")


def _is_map(descriptor: FieldDescriptor) -> bool:
    return bool(descriptor.message_type and descriptor.message_type.GetOptions().map_entry)


def encode(message: Message | bytes) -> bytes:
    """Encode an answer. Output that many followers get comes encoded already."""
    return message if isinstance(message, bytes) else message.SerializeToString()

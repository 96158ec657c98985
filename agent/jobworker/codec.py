"""Frozen types to plain JSON data and back, strictly.

One codec serves every edge at which the agent reads what another process wrote: the socket between gateway
and supervisor, the job records on disk, the canonical settings. Decoding accepts exactly what encoding
produces: each field with its type, none missing without a default, none unknown, integers within 64 bits.
Text may hold lone surrogates, as `os.fsdecode` makes of bytes that are not UTF-8, and keeps them.
"""

from __future__ import annotations

import enum
import functools
import json
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast

from jobworker.errors import ProtocolError

T = TypeVar("T")

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def dumps(value: Any) -> bytes:
    """Encode a frozen dataclass as compact JSON in UTF-8, lone surrogates as themselves."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def loads(cls: type[T], data: bytes) -> T:
    """Decode what `dumps` made.

    Raises:
        ProtocolError: the data is not JSON, or not of this type to the letter.
    """
    return cast("T", from_plain(cls, parse(data)))


def parse(data: bytes) -> Any:
    """Parse JSON, refusing what JSON itself does not have (NaN) and what Python can't hold safely.

    Raises:
        ProtocolError: the data is not JSON, or is nested too deep.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _to_plain(value: Any) -> Any:
    """What the encoder asks for when it meets a type that JSON does not have."""
    if isinstance(value, enum.Enum):
        return value.value
    cls: Any = type(value)
    return {name: getattr(value, name) for name in _names(cls)}


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_to_plain)


def field_types(cls: Any) -> tuple[Any, ...]:
    """The types of a dataclass's fields, in their order."""
    return tuple(_hints(cls)[field.name] for field in fields(cls))


def from_plain(hint: Any, plain: Any, where: str = "") -> Any:
    """Decode plain data as the type `hint`; `where` is the dotted path for the error's text.

    Raises:
        ProtocolError: the data does not fit the type.
    """
    if is_dataclass(hint):
        return _dataclass(hint, plain, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _tuple(typing.get_args(hint), plain, where)
    if origin is types.UnionType:
        return None if plain is None else from_plain(_optional_of(hint), plain, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint, plain, where)
    return _scalar(hint, plain, where)


def _dataclass(cls: Any, plain: Any, where: str) -> Any:
    if type(plain) is not dict:
        raise ProtocolError(f"{where or cls.__name__}: not an object")
    hints, values = _hints(cls), {}
    for field in fields(cls):
        path = f"{where}.{field.name}" if where else field.name
        if field.name in plain:
            values[field.name] = from_plain(hints[field.name], plain[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ProtocolError(f"{path}: missing")
    unknown = plain.keys() - hints.keys()
    if unknown:
        raise ProtocolError(f"{where or cls.__name__}: unknown field {min(unknown)!r:.80}")
    return cls(**values)


def _tuple(args: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if type(plain) is not list:
        raise ProtocolError(f"{where}: not a list")
    if args[-1] is Ellipsis:
        return tuple(from_plain(args[0], item, f"{where}[{i}]") for i, item in enumerate(plain))
    if len(plain) != len(args):
        raise ProtocolError(f"{where}: {len(plain)} items instead of {len(args)}")
    return tuple(
        from_plain(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(args, plain, strict=True))
    )


def _optional_of(hint: Any) -> Any:
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return inner


def _enum(cls: type[enum.Enum], plain: Any, where: str) -> enum.Enum:
    try:
        return cls(plain)
    except ValueError:
        raise ProtocolError(f"{where}: {plain!r:.80} is not a {cls.__name__}") from None


def _scalar(hint: Any, plain: Any, where: str) -> Any:
    if hint is float and type(plain) is int:
        plain = float(plain)
    # `type is`, not isinstance: a bool must not pass for an integer.
    if type(plain) is not hint:
        raise ProtocolError(f"{where}: {type(plain).__name__} instead of {hint.__name__}")
    if hint is int and not _INT_MIN <= plain <= _INT_MAX:
        raise ProtocolError(f"{where}: beyond 64 bits")
    return plain

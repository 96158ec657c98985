"""Frozen types to plain JSON data and back, strictly.

One codec serves every edge at which the agent reads what another process wrote: the socket between gateway
and supervisor, the job records on disk, the canonical settings. Decoding accepts exactly what encoding
produces: each field with its type, none missing without a default, none unknown, integers within 64 bits.
Text may hold lone surrogates, as `os.fsdecode` makes of bytes that are not UTF-8, and keeps them. Bytes go as
base64.
"""

from __future__ import annotations

import binascii
import enum
import functools
import itertools
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast

from jobworker.errors import ProtocolError

T = TypeVar("T")

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def dumps(value: Any) -> bytes:
    """Encode a frozen dataclass as compact JSON in UTF-8, lone surrogates as themselves."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def dumps_sparse(value: Any) -> bytes:
    """Encode what differs from its default: a field that a later version adds changes nothing."""
    return _SPARSE_ENCODER.encode(value).encode("utf-8", "surrogatepass")


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
    if is_dataclass(value):
        cls: Any = type(value)
        return {name: getattr(value, name) for name in _names(cls)}
    return _scalar_to_plain(value)


def _scalar_to_plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else binascii.b2a_base64(value, newline=False).decode()


def _to_sparse(value: Any) -> Any:
    if not is_dataclass(value):
        return _scalar_to_plain(value)
    cls: Any = type(value)
    given = ((field, getattr(value, field.name)) for field in fields(cls))
    return {field.name: each for field, each in given if each != field.default}


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_to_plain)
_SPARSE_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_to_sparse)


def field_types(cls: Any) -> tuple[Any, ...]:
    """The types of a dataclass's fields, in their order."""
    return tuple(_hints(cls)[field.name] for field in fields(cls))


def from_plain(hint: Any, plain: Any) -> Any:
    """Decode plain data as the type `hint`.

    Raises:
        ProtocolError: the data does not fit the type; the error names the field by its dotted path.
    """
    try:
        return _decoder(hint)(plain)
    except _Misfit as misfit:
        raise ProtocolError(misfit.text(getattr(hint, "__name__", str(hint)))) from None


class _Misfit(Exception):
    """What is wrong, and where; the path grows from the inside out, so that only an error costs its making."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def inside(self, step: str) -> None:
        self.path = f"{step}.{self.path}" if self.path and self.path[0] != "[" else f"{step}{self.path}"

    def text(self, name: str) -> str:
        return f"{self.path or name}: {self.problem}"


_Decode = Callable[[Any], Any]


@functools.cache
def _decoder(hint: Any) -> _Decode:
    """The function that decodes a type, made once."""
    if is_dataclass(hint):
        return _dataclass_decoder(hint)
    if typing.get_origin(hint) is tuple:
        return _tuple_decoder(typing.get_args(hint))
    if typing.get_origin(hint) is types.UnionType:
        return _optional_decoder(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_decoder(hint)
    return _scalar_decoder(hint)


def _dataclass_decoder(cls: Any) -> _Decode:
    decoders = {name: _decoder(hint) for name, hint in _hints(cls).items()}
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}

    def decode(plain: Any) -> Any:
        if type(plain) is not dict:
            raise _Misfit("not an object")
        values = {}
        for name, value in plain.items():
            decode_field = decoders.get(name)
            if decode_field is None:
                raise _Misfit(f"unknown field {name!r:.80}")
            try:
                values[name] = decode_field(value)
            except _Misfit as misfit:
                misfit.inside(name)
                raise
        if absent := required - values.keys():
            missing = _Misfit("missing")
            missing.inside(min(absent))
            raise missing
        return cls(**values)

    return decode


def _tuple_decoder(args: tuple[Any, ...]) -> _Decode:
    if args[-1] is Ellipsis:
        decode_item = _decoder(args[0])

        def decode_all(plain: Any) -> Any:
            return tuple(_items(plain, itertools.repeat(decode_item)))

        return decode_all
    decoders = tuple(map(_decoder, args))

    def decode(plain: Any) -> Any:
        items = tuple(_items(plain, iter(decoders)))
        if len(plain) != len(decoders):
            raise _Misfit(f"{len(plain)} items instead of {len(decoders)}")
        return items

    return decode


def _items(plain: Any, decoders: Iterator[_Decode]) -> Iterator[Any]:
    if type(plain) is not list:
        raise _Misfit("not a list")
    # A fixed number of decoders ends the shorter; the caller counts.
    for i, (item, decode) in enumerate(zip(plain, decoders, strict=False)):
        try:
            yield decode(item)
        except _Misfit as misfit:
            misfit.inside(f"[{i}]")
            raise


def _optional_decoder(hint: Any) -> _Decode:
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    decode = _decoder(inner)
    return lambda plain: None if plain is None else decode(plain)


def _enum_decoder(cls: type[enum.Enum]) -> _Decode:
    members: dict[Any, enum.Enum] = {member.value: member for member in cls}

    def decode(plain: Any) -> enum.Enum:
        member = members.get(plain) if type(plain) in (str, int) else None
        if member is None:
            raise _Misfit(f"{plain!r:.80} is not a {cls.__name__}")
        return member

    return decode


def _scalar_decoder(cls: Any) -> _Decode:
    # `type is`, not isinstance: a bool must not pass for an integer.
    def decode(plain: Any) -> Any:
        if type(plain) is not cls:
            raise _Misfit(f"{type(plain).__name__} instead of {cls.__name__}")
        return plain

    return _SPECIAL.get(cls, decode)


def _decode_int(plain: Any) -> Any:
    if type(plain) is not int:
        raise _Misfit(f"{type(plain).__name__} instead of int")
    if not _INT_MIN <= plain <= _INT_MAX:
        raise _Misfit("beyond 64 bits")
    return plain


def _decode_float(plain: Any) -> Any:
    if type(plain) not in (float, int):
        raise _Misfit(f"{type(plain).__name__} instead of float")
    try:
        number = float(plain)
    except OverflowError:
        raise _Misfit("beyond what a float holds") from None
    if not abs(number) <= sys.float_info.max:
        raise _Misfit("not a finite number")
    return number


def _decode_bytes(plain: Any) -> Any:
    if type(plain) is not str:
        raise _Misfit(f"{type(plain).__name__} instead of bytes")
    try:
        return binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        raise _Misfit("not base64") from None


_SPECIAL: dict[Any, _Decode] = {int: _decode_int, float: _decode_float, bytes: _decode_bytes}

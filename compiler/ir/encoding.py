"""The rule algebra as attributes of nodes and back: dataclasses are tuples, defaults are left out of a rule's line."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast

from echoc.errors import IRError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A value of the algebra as nested tuples of numbers, strings and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(encode(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, frozenset):
        return tuple(sorted(value))
    if isinstance(value, Mapping):
        return tuple((k, encode(v)) for k, v in sorted(value.items()))
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple):
        return tuple(encode(v) for v in value)
    return value


def decode(kind: Any, value: Any) -> Any:
    """The inverse of `encode` for a declared type. Raises IRError for what does not fit it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(decode(arguments[0], v) for v in _listed(value))
        return tuple(decode(a, v) for a, v in zip(arguments, _listed(value, len(arguments)), strict=True))
    if origin is frozenset:
        return frozenset(decode(arguments[0], v) for v in _listed(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = [_listed(pair, 2) for pair in _listed(value)]
        return {decode(arguments[0], k): decode(arguments[1], v) for k, v in pairs}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in list(kind):
            raise IRError(f"found {value!r}; wanted one of {', '.join(kind)}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise IRError(f"found {value!r}; wanted a {kind.__name__}")
    return value


def _listed(value: Any, size: int | None = None) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise IRError(f"found {value!r}; wanted a list")
    if size is not None and len(value) != size:
        raise IRError(f"found {len(value)} entries in {value!r}; wanted {size}")
    return value


def _decode_union(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        is_tree = typing.get_origin(kind) is not None or dataclasses.is_dataclass(kind)
        if kind is not type(None) and is_tree == isinstance(value, tuple):
            return decode(kind, value)
    raise IRError(f"found {value!r}; wanted one of {', '.join(str(k) for k in kinds)}")


@cache
def hints(kind: Any) -> Mapping[str, Any]:
    """The declared types of a dataclass's fields, in order."""
    found = typing.get_type_hints(kind)
    return {f.name: found[f.name] for f in dataclasses.fields(kind)}


def _decode_dataclass(kind: Any, value: Any) -> Any:
    fields = hints(kind)
    if not isinstance(value, tuple) or len(value) != len(fields):
        raise IRError(f"found {value!r}; wanted the {len(fields)} entries of a {kind.__name__}")
    try:
        return kind(*(decode(t, v) for t, v in zip(fields.values(), value, strict=True)))
    except RecursionError:
        raise IRError(f"a {kind.__name__} nests too deep") from None


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass with their defaults; MISSING where there is none."""
    return tuple(
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(kind)
    )


def attributes(value: Any) -> dict[str, Any]:
    """A dataclass as attributes by the names of its fields, those that have their default left out."""
    out = {}
    kind: Any = type(value)
    for name, default in _defaults(kind):
        found = getattr(value, name)
        if found is not default and (found != default or type(found) is not type(default)):
            out[name] = encode(found)
    return out


def from_attributes(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `attributes`. Raises IRError for unknown or missing fields, and for values that do not fit."""
    fields = hints(cast(Any, kind))
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise IRError(f"a {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(fields)}")
    try:
        return kind(**{name: decode(fields[name], v) for name, v in values.items()})
    except TypeError as error:
        raise IRError(f"a {kind.__name__} is not complete: {error}") from None

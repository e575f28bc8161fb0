"""The rule algebra as attributes of nodes and back: dataclasses are tuples, defaults are left out of a rule's line."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache, partial
from typing import Any, TypeVar, cast

from echoc.errors import IRError

T = TypeVar("T")


_PLAIN = frozenset({int, str, float, bool, type(None)})


def encode(value: Any) -> Any:
    """A value of the algebra as nested tuples of numbers, strings and None."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple:
        return tuple([encode(v) for v in value])
    if dataclasses.is_dataclass(kind):
        return tuple([encode(getattr(value, name)) for name, _ in _defaults(kind)])
    if isinstance(value, frozenset):
        return tuple(sorted(value))
    if isinstance(value, Mapping):
        return tuple((k, encode(v)) for k, v in sorted(value.items()))
    return str(value) if isinstance(value, StrEnum) else value


def decode(kind: Any, value: Any) -> Any:
    """The inverse of `encode` for a declared type. Raises IRError for what does not fit it."""
    return _decoder(kind)(value)


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """What decodes values of a declared type; types are looked at once."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return partial(_decode_union, arguments)
    if origin is tuple:
        parts = [_decoder(a) for a in arguments if a is not Ellipsis]
        if arguments[-1] is Ellipsis:
            return lambda value: tuple([parts[0](v) for v in _listed(value)])
        return lambda value: tuple([d(v) for d, v in zip(parts, _listed(value, len(parts)), strict=True)])
    if origin is frozenset:
        entry = _decoder(arguments[0])
        return lambda value: frozenset([entry(v) for v in _listed(value)])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, entry = map(_decoder, arguments)
        return lambda value: {key(k): entry(v) for k, v in [_listed(pair, 2) for pair in _listed(value)]}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return partial(_decode_dataclass, kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return partial(_decode_word, kind)
    return partial(_decode_plain, kind)


def _decode_word(kind: type[StrEnum], value: Any) -> StrEnum:
    if value not in list(kind):
        raise IRError(f"found {value!r}; wanted one of {', '.join(kind)}")
    return kind(value)


def _decode_plain(kind: Any, value: Any) -> Any:
    if type(value) is kind:
        return value
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
    for kind, is_tree in _alternatives(kinds):
        if is_tree == isinstance(value, tuple):
            return _decoder(kind)(value)
    raise IRError(f"found {value!r}; wanted one of {', '.join(str(k) for k in kinds)}")


@cache
def _alternatives(kinds: tuple[Any, ...]) -> tuple[tuple[Any, bool], ...]:
    """The kinds but None, and whether their values are tuples."""
    return tuple(
        (k, typing.get_origin(k) is not None or dataclasses.is_dataclass(k)) for k in kinds if k is not type(None)
    )


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
        return kind(*[_decoder(t)(v) for t, v in zip(fields.values(), value, strict=True)])
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

"""What crosses boundaries: values of ports, checked, and the adapters of wires.

A tensor is an array [size], objects are a mapping to counts, a text is a str. An adapter gives None where nothing
crosses; one that remembers (an edge) belongs to one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from echoc.errors import ArtifactError, DeviceError, RequestError

Value = Any
Adapter = Callable[[Value], Value]
DTYPES = {"f64": np.float64, "f32": np.float32, "i64": np.int64}
_LARGEST = (1 << 63) - 1


def prepared(port: Mapping[str, Any]) -> dict[str, Any]:
    """A port of the manifest in the form that `checked` takes."""
    known = frozenset(str(obj) for obj in port.get("objects", ()))
    return {**port, "name": str(port["name"]), "known": known}


def checked(port: Mapping[str, Any], given: Value) -> Value:
    """What a caller gives to an in port, as it crosses. Raises RequestError."""
    name, kind = port["name"], port["kind"]
    if kind == "text":
        if not isinstance(given, str):
            raise RequestError(f"input {name} is {type(given).__name__}, wanted a text")
        return given
    return _tensor(port, given) if kind == "tensor" else _objects(port, given)


def _tensor(port: Mapping[str, Any], given: Value) -> Value:
    name, dtype, size = port["name"], DTYPES[port["dtype"]], port["size"]
    try:
        array = np.array(given)
        if array.dtype.kind not in ("iuf" if port["dtype"] != "i64" else "iu"):
            raise TypeError(f"found {given!r:.60}")
        array = array.astype(dtype).reshape(-1) if array.ndim < 2 else array
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"input {name} wants {port['dtype']}[{size}]: {error}") from None
    if array.shape != (size,):
        raise RequestError(f"input {name} has the shape {list(array.shape)}, wanted [{size}]")
    if not np.isfinite(array).all():
        raise RequestError(f"input {name} holds NaN or infinity, wanted finite numbers")
    return array


def _objects(port: Mapping[str, Any], given: Value) -> dict[str, int]:
    name = port["name"]
    if type(given) is dict and all(  # as nearly always
        obj in port["known"] and type(count) is int and 0 < count <= _LARGEST for obj, count in given.items()
    ):
        return dict(given)
    if isinstance(given, str) or not isinstance(given, Mapping | Sequence):
        raise RequestError(f"input {name} is {given!r:.80}, wanted objects: a mapping to counts, or a list")
    counts: dict[str, int] = {}
    for obj, count in given.items() if isinstance(given, Mapping) else ((obj, 1) for obj in given):
        if not isinstance(obj, str) or obj not in port["known"]:
            raise RequestError(
                f"input {name} declares no object {obj!r:.80}; it takes {' '.join(port['objects'][:20])}"
            )
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 <= count <= _LARGEST:
            raise RequestError(f"input {name} gets {count!r:.80} of {obj}, wanted a whole number from 0")
        counts[obj] = counts.get(obj, 0) + int(count)
    return {obj: count for obj, count in counts.items() if count}


def plain(value: Value) -> Any:
    """A value of a port as JSON has it: a list of numbers, an object of counts, a text."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def adapter(step: Mapping[str, Any]) -> Adapter:
    """The function of one step of a wire. Raises ArtifactError for one that is not known."""
    try:
        return _ADAPTERS[step["kind"]](step)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"a wire asks for {dict(step)!r:.120}, which is not valid: {error!r}; compile again"
        ) from None


def _only(step: Mapping[str, Any]) -> Adapter:
    names = frozenset(step["objects"])
    return lambda value: {obj: count for obj, count in value.items() if obj in names} or None


def _rename(step: Mapping[str, Any]) -> Adapter:
    names = dict(step["names"])

    def rename(value: Value) -> Value:
        out: dict[str, int] = {}
        for obj, count in value.items():
            new = names.get(obj, obj)
            out[new] = out.get(new, 0) + count
        return out

    return rename


def _channels(step: Mapping[str, Any]) -> Adapter:
    channels = np.array(step["channels"], np.intp)
    return lambda value: value[channels]


class _Threshold:
    """Objects for the channels above a limit, or for those that have just crossed it."""

    def __init__(self, step: Mapping[str, Any]) -> None:
        self.above, self.edge, self.objects = float(step["above"]), str(step["edge"]), list(step["objects"])
        self.before: list[bool] = [False] * len(self.objects)

    def __call__(self, value: Value) -> Value:
        now = [x > self.above for x in value.tolist()]
        if self.edge == "none":
            fired = now
        else:
            rising = self.edge == "rising"
            fired = [(x > b) if rising else (x < b) for x, b in zip(now, self.before, strict=True)]
            self.before = now
        return {obj: 1 for obj, fire in zip(self.objects, fired, strict=True) if fire} or None


def _round(step: Mapping[str, Any]) -> Adapter:
    objects = list(step["objects"])

    def whole(value: Value) -> Value:
        counts: dict[str, int] = {}
        for obj, x in zip(objects, value.tolist(), strict=True):
            if not -9.2e18 < x < 9.2e18:  # NaN as well
                raise DeviceError(f"{x} is no number of objects {obj}")
            count = round(x)
            if count > 0:
                counts[obj] = count
        return counts or None

    return whole


def _cast(step: Mapping[str, Any]) -> Adapter:
    dtype = DTYPES[step["dtype"]]
    return lambda value: value.astype(dtype)


def _counts(step: Mapping[str, Any]) -> Adapter:
    objects, dtype = list(step["objects"]), DTYPES[step["dtype"]]
    return lambda value: np.array([value.get(obj, 0) for obj in objects], dtype)


def _prompt(step: Mapping[str, Any]) -> Adapter:
    texts = dict(step["texts"])
    return lambda value: (
        "\n".join(texts[obj].replace("{count}", str(count)).replace("{object}", obj) for obj, count in value.items())
        or None
    )


def _contains(step: Mapping[str, Any]) -> Adapter:
    words = dict(step["objects"])
    return lambda value: {obj: 1 for obj, text in words.items() if text in value} or None


def _template(step: Mapping[str, Any]) -> Adapter:
    text = str(step["text"])
    return lambda value: text.replace("{text}", value)


_ADAPTERS: dict[str, Callable[[Mapping[str, Any]], Adapter]] = {
    "only": _only, "rename": _rename, "channels": _channels, "threshold": _Threshold, "round": _round, "cast": _cast,
    "counts": _counts, "prompt": _prompt, "contains": _contains, "template": _template,
}  # fmt: skip

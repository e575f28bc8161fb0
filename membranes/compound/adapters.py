"""What a wire does to what it carries: a chain of adapters, each from one type to another, all of them written out.

only = ["a"]                                        of objects, these; others take another wire
rename = { a = "b" }                                objects under other names
channels = [0, 2]                                   of a tensor, these
threshold = { above = 0.5, objects = ["a"] }        an object for every channel above; edge = "rising": when it gets so
round = { objects = ["a"] }                         as many objects as the nearest whole number, none below 1
cast = "f32"                                        a tensor of another dtype
counts = ["a", "b"]                                 how many of each object came: a tensor
prompt = { a = "text with {count}" }                a text for an object that came
contains = { a = "words" }                          an object for a text that contains the words
template = "before {text} after"                    a text around a text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import Place
from .topology import MAX_SIZE, PortType, alphabet

Step = dict[str, Any]
_EDGES = ("none", "rising", "falling")
MAX_TEXT = 1 << 20


def adapt(
    kind: PortType, options: Mapping[str, Any], place: Place, wanted: PortType | None
) -> tuple[list[Step], PortType]:
    """The steps of a wire's adapters, in their order, and the type that comes out. `wanted`: that of the target.

    Raises: TopologyError for an adapter that is unknown, or does not fit what it gets.
    """
    unknown = [key for key in options if key not in ADAPTERS and key != "copy"]
    if unknown:
        raise place.error(f"unknown key {unknown[0]!r}", f"a wire has from, to, copy and {', '.join(ADAPTERS)}")
    if not isinstance(options.get("copy", False), bool):
        raise place.error(f"copy is {options['copy']!r}", "wanted true or false")
    steps: list[Step] = []
    for key, (needs, apply) in ADAPTERS.items():
        if key not in options:
            continue
        if kind.kind != needs:
            raise place.error(f"{key} takes {needs}; the wire carries {kind}", "choose an adapter that fits")
        step, kind = apply(options[key], kind, place, wanted)
        steps.append({"kind": key, **step})
    return steps, kind


def _only(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    names = alphabet(given, place)
    _known(names, kind, place)
    return {"objects": list(names)}, PortType("objects", objects=names)


def _rename(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    names = _texts(given, "rename", place)
    _known(names, kind, place)
    new = tuple(dict.fromkeys(names.get(name, name) for name in kind.objects))
    alphabet(list(new), place)
    return {"names": names}, PortType("objects", objects=new)


def _channels(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    good = isinstance(given, list | tuple) and 0 < len(given) <= MAX_SIZE
    if not good or any(isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < kind.size for c in given):
        raise place.error(f"channels is {given!r}", f"wanted a list of numbers from 0 to {kind.size - 1}")
    return {"channels": list(given)}, PortType("tensor", kind.dtype, len(given))


def _threshold(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    table = _table(given, "threshold", {"above", "objects", "edge"}, place)
    above, edge = table.get("above"), table.get("edge", "none")
    if isinstance(above, bool) or not isinstance(above, int | float) or not math.isfinite(above):
        raise place.error(f"above is {above!r}", "wanted a finite number")
    if edge not in _EDGES:
        raise place.error(f"edge is {edge!r}", f"wanted one of {', '.join(_EDGES)}")
    names = _per_channel(table.get("objects"), kind, place)
    return {"above": float(above), "edge": edge, "objects": list(names)}, PortType("objects", objects=names)


def _round(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    table = _table(given, "round", {"objects"}, place)
    names = _per_channel(table.get("objects"), kind, place)
    return {"objects": list(names)}, PortType("objects", objects=names)


def _cast(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    if given not in ("f64", "f32"):
        raise place.error(f"cast is {given!r}", "wanted f64 or f32; round makes whole numbers of objects")
    return {"dtype": given}, PortType("tensor", given, kind.size)


def _counts(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    names = alphabet(given, place)
    _known(names, kind, place)
    lost = [name for name in kind.objects if name not in set(names)]
    if lost:
        raise place.error(f"counts leaves out {lost[0]}, which the wire carries", "list it, or let `only` choose")
    dtype = wanted.dtype if wanted is not None and wanted.kind == "tensor" else "i64"
    return {"objects": list(names), "dtype": dtype}, PortType("tensor", dtype, len(names))


def _prompt(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    texts = _texts(given, "prompt", place)
    _known(texts, kind, place)
    lost = [name for name in kind.objects if name not in texts]
    if lost:
        raise place.error(f"prompt has no text for {lost[0]}, which the wire carries", "give one, or let `only` choose")
    return {"texts": texts}, PortType("text")


def _contains(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    texts = _texts(given, "contains", place)
    return {"objects": texts}, PortType("objects", objects=alphabet(list(texts), place))


def _template(given: Any, kind: PortType, place: Place, wanted: PortType | None) -> tuple[Step, PortType]:
    if not isinstance(given, str) or "{text}" not in given or len(given) > MAX_TEXT:
        raise place.error(f"template is {given!r:.80}", "wanted a text with {text} in it")
    return {"text": given}, PortType("text")


def _known(names: Any, kind: PortType, place: Place) -> None:
    there = set(kind.objects)
    for name in names:
        if name not in there:
            raise place.error(f"the wire carries no object {name}", f"it carries {' '.join(kind.objects[:20])}")


def _texts(given: Any, what: str, place: Place) -> dict[str, str]:
    if not isinstance(given, Mapping) or not given:
        raise place.error(f"{what} is {given!r:.80}", "wanted a table from objects to texts")
    for name, text in given.items():
        if not isinstance(name, str) or not isinstance(text, str) or len(text) > MAX_TEXT:
            raise place.error(f"{what} maps {name!r} to {text!r:.80}", "wanted a text")
    return dict(given)


def _table(given: Any, what: str, keys: set[str], place: Place) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise place.error(f"{what} is {given!r:.80}", f"wanted a table of {', '.join(sorted(keys))}")
    unknown = sorted(str(key) for key in set(given) - keys)
    if unknown:
        raise place.error(f"{what} has the key {unknown[0]!r}", f"it has {', '.join(sorted(keys))}")
    return given


def _per_channel(given: Any, kind: PortType, place: Place) -> tuple[str, ...]:
    names = alphabet(given, place)
    if len(names) != kind.size:
        raise place.error(
            f"{len(names)} objects for a tensor {kind}", "wanted one for each channel; `channels` chooses"
        )
    return names


ADAPTERS: dict[str, tuple[str, Callable[[Any, PortType, Place, PortType | None], tuple[Step, PortType]]]] = {
    "only": ("objects", _only), "rename": ("objects", _rename), "channels": ("tensor", _channels),
    "threshold": ("tensor", _threshold), "round": ("tensor", _round), "cast": ("tensor", _cast),
    "counts": ("objects", _counts), "prompt": ("objects", _prompt), "contains": ("text", _contains),
    "template": ("text", _template),
}  # fmt: skip

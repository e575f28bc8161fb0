"""Rules, patterns and whole systems as P-Lingua."""

from __future__ import annotations

from .patterns import RuleShape, Shape
from .syntax import Membrane, Object
from .syntax import Rule as RuleNode

Bag = tuple[tuple[str, int], ...]
MAX_SHOWN = 300
SIGNS = {1: "+", -1: "-", 0: "", None: "?"}


def show_bag(bag: Bag, dissolve: bool = False) -> str:
    parts = [name if count == 1 else f"{name}*{count}" for name, count in bag]
    return ", ".join([*parts, *(["@d"] if dissolve else [])])


def show_membrane(shape: Shape) -> str:
    content = " ".join(s for s in (show_bag(shape.bag, shape.dissolve), *map(show_membrane, shape.inner)) if s)
    sign = SIGNS[shape.charge] + (str(shape.variable) if shape.charge is None and shape.variable >= 0 else "")
    return f"{sign}[{content}]'{','.join(shape.label)}"


def show_shape(shape: RuleShape) -> str:
    """A rule with the arrow outside of its membranes."""
    left = f"{show_bag(shape.outside)} {show_membrane(shape.left)}".strip()
    right = " ".join(s for s in (show_bag(shape.after), *map(show_membrane, shape.right)) if s)
    return f"{left} {'<-->' if shape.double else '-->'} {right}".rstrip()


def shortened(text: str) -> str:
    """The text of a rule for a message."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def pattern_shape(node: RuleNode) -> RuleShape:
    """The shape of a rule of a pattern, whose objects and labels stand as they are written."""

    def bag(objects: tuple[Object, ...]) -> Bag:
        counts: dict[str, int] = {}
        for o in objects:
            if o.name is not None:
                name = o.name.name + _indices(o.name.index)
                count = getattr(o.count, "value", 1)
                counts[name] = counts.get(name, 0) + (count if isinstance(count, int) else 1)
        return tuple(sorted(counts.items()))

    def membrane(m: Membrane, default: tuple[str, ...]) -> Shape:
        labels = default if m.labels is None else tuple(str(getattr(x.value, "value", "")) for x in m.labels)
        dissolve = any(o.dissolve for o in m.objects)
        inner = tuple(membrane(i, ()) for i in m.inner)
        return Shape(m.charge.value, labels, bag(m.objects), dissolve, inner, m.charge.variable)

    left = membrane(node.left, ())
    right = tuple(membrane(m, left.label) for m in node.right)
    return RuleShape(bag(node.outside), left, node.double, bag(node.outside_after), right)


def _indices(index: tuple[object, ...]) -> str:
    return "{" + ",".join(str(getattr(i, "value", "")) for i in index) + "}" if index else ""

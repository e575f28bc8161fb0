"""The trace as text for a terminal: trees as P-Lingua writes them, graphs as kP-Lingua does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from .notation import bag_text, charge_text, clean
from .reading import Trace
from .shape import Node, forest
from .trace import End, Frame, Header

MOST = 2000
"""Groups of equal membranes that are printed for one configuration."""


def configuration_text(frame: Frame, width: int | None = None) -> str:
    """One configuration, in lines of about `width` columns (None: the terminal's).

    Trees `[ c*10 +[ a ]'2 ×64 ]'1`, the environment in front; graphs `name (Type) {2a, b}` with `->` links; totals by
    label where the trace has only these; `x = 0.5` for numerical values.
    """
    width = width or shutil.get_terminal_size().columns
    if frame.values is not None:
        return _fold([f"{clean(k)} = {v:.9g}" for k, v in frame.values.items()], width)
    lines = [f"environment: {bag_text(frame.environment)}"] if frame.environment else []
    if frame.counts is not None:
        for label, total in frame.counts.items():
            lines.append(f"[ {_folded_bag(total.objects)} ]'{clean(label)} in all ×{total.membranes}")
    elif frame.is_graph:
        lines += _graph(frame)
    else:
        roots, hidden = forest(frame, most=MOST)
        lines += _tree(roots, width)
        if hidden:
            lines.append(f"... {hidden} more membranes")
    return "\n".join(lines)


def _folded_bag(objects: object) -> str:
    return bag_text(objects) if isinstance(objects, dict) and objects else "#"


def _fold(parts: list[str], width: int) -> str:
    lines, line = [], ""
    for part in parts:
        if line and len(line) + 2 + len(part) > width:
            lines.append(line + ",")
            line = part
        else:
            line = f"{line}, {part}" if line else part
    return "\n".join([*lines, line])


def _close(node: Node) -> str:
    label = f"'{clean(node.label)}" + (f" ({clean(node.name)})" if node.name else "")
    return f"]{label}" + (f" closed {node.closed}" if node.closed else "") + _times(node)


def _times(node: Node) -> str:
    return f" ×{node.times}" if node.times > 1 else ""


def _tree(roots: list[Node], width: int) -> list[str]:
    """A membrane on one line if it fits, else its content indented below its bracket."""
    short = _one_liners(roots, width)
    lines: list[str] = []
    work: list[tuple[Node | str, int]] = [(n, 0) for n in reversed(roots)]
    while work:
        node, depth = work.pop()
        indent = "  " * min(depth, max(2, width // 6))
        if isinstance(node, str):
            lines.append(indent + node)
            continue
        line = short.get(id(node))
        if line is not None and len(indent) + len(line) <= width:
            lines.append(indent + line)
            continue
        work.append((_close(node), depth))
        if node.hidden:
            work.append((f"... {node.hidden} more membranes", depth + 1))
        work.extend((child, depth + 1) for child in reversed(node.children))
        opening = f"{charge_text(node.charge)}[ "
        folded = _fold(bag_text(node.objects).split(", "), max(20, width - len(indent) - len(opening)))
        lines.extend(indent + (opening if i == 0 else " " * len(opening)) + x for i, x in enumerate(folded.split("\n")))
        lines[-1] = lines[-1].rstrip()
    return lines


def _one_liners(roots: list[Node], width: int) -> dict[int, str]:
    """The text of every node that fits on a line, innermost first."""
    order = list(roots)
    for node in order:
        order.extend(node.children)
    short: dict[int, str] = {}
    for node in reversed(order):
        inner = [short.get(id(child)) for child in node.children]
        if None in inner or node.hidden or sum(len(x or "") for x in inner) > width:
            continue
        content = " ".join(x for x in (bag_text(node.objects), *inner) if x)
        text = f"{charge_text(node.charge)}[ {content} {_close(node)}" if content else ""
        text = text or f"{charge_text(node.charge)}[ {_close(node)}"
        if len(text) <= width:
            short[id(node)] = text
    return short


def _graph(frame: Frame) -> list[str]:
    """`name (Type) {2a, b} -> other, ...`; cells without links that are equal are grouped."""
    names = {m.id: clean(m.name) or f"{clean(m.label)}#{m.id}" for m in frame.membranes}
    links: dict[int, list[int]] = {}
    for source, to in frame.links:
        links.setdefault(source, []).append(to)
    linked = {end for link in frame.links for end in link}
    lines: list[str] = []
    groups: dict[str, int] = {}
    for m in frame.membranes:
        objects = ", ".join(f"{c if c != 1 else ''}{clean(o)}" for o, c in sorted(m.objects.items()))
        closed = f" closed {m.closed}" if m.closed else ""
        sign = charge_text(m.charge)
        if m.id in linked or m.name:
            arrow = f" -> {', '.join(names[t] for t in links[m.id])}" if m.id in links else ""
            lines.append(f"{names[m.id]} {sign}({clean(m.label)}) {{{objects}}}{closed}{arrow}")
        else:
            line = f"{sign}({clean(m.label)}) {{{objects}}}{closed}"
            groups[line] = groups.get(line, 0) + 1
    lines += [line + (f" ×{times}" if times > 1 else "") for line, times in groups.items()]
    return lines if len(lines) <= MOST else [*lines[:MOST], f"... {len(lines) - MOST} more"]


def frame_text(frame: Frame, rules: tuple[str, ...] = (), width: int | None = None) -> str:
    """The rules that led to a configuration, then the configuration, numbered by its step."""
    fired: dict[int, int] = {}
    for f in frame.applied:
        fired[f.rule] = fired.get(f.rule, 0) + f.times
    lines = [f"  {times} × {clean(rules[i]) if i < len(rules) else f'rule {i}'}" for i, times in sorted(fired.items())]
    time = f" at time {frame.time:.6g}" if frame.time is not None else ""
    size = f", {frame.num_membranes} membranes" if frame.num_membranes > 1 else ""
    return "\n".join([*lines, f"Configuration {frame.step}{time}{size}", configuration_text(frame, width)])


def end_text(end: End | None) -> str:
    if end is None:
        return "The trace breaks off: the run was interrupted."
    what = "Halted" if end.halted else "Stopped"
    return f"{what} at step {end.step}: {end.reason}" + (f" ({clean(end.message)})" if end.message else "")


def header_text(header: Header) -> str:
    where = f", {clean(header.source)}" if header.source else ""
    return f"{clean(header.name) or 'P system'} ({clean(header.model)}, seed {header.seed}, run {header.run}{where})"


def trace_text(trace: Trace, width: int | None = None) -> Iterator[str]:
    """The whole trace, one piece of text for the header, every configuration, and the end."""
    yield header_text(trace.header)
    for frame in trace:
        yield frame_text(frame, trace.header.rules, width)
    yield end_text(trace.end)

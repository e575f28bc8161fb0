"""The page of a run: one self-contained HTML file that steps through the configurations."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .notation import clean
from .reading import Trace, read_trace
from .shape import Node, Sample, Thinned, forest, sample, series
from .trace import Frame, TraceError

FRAMES, NODES, DEEPEST = 400, 400, 24
"""Configurations a page holds; groups of equal membranes of one of them; depth to which they are shown."""
WEIGHT = 300_000
"""Objects, membranes and applications that a page holds; longer runs are thinned to it."""
OBJECTS = 200
"""Objects listed of one membrane, the most frequent ones first."""


def html(trace: Trace | str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes the page: no network, no dependency. Raises TraceError for a bad trace or one without configurations."""
    trace = trace if isinstance(trace, Trace) else read_trace(trace)
    page = render(trace)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: the page cannot be written: {error.strerror}") from error


def render(trace: Trace) -> str:
    """The page as text."""
    frames: Thinned[dict[str, Any]] = Thinned(FRAMES, WEIGHT)
    samples: Thinned[Sample] = Thinned(FRAMES * 2, WEIGHT * 10)
    for frame in trace:
        frames.offer(lambda frame=frame: _weighed(frame))  # type: ignore[misc]
        samples.offer(lambda frame=frame: sample(frame))  # type: ignore[misc]
    kept = frames.items()
    if not kept:
        raise TraceError(f"{trace.name}: no configuration to show")
    header, lines = trace.header, series(samples.items())
    fired = sorted({f[0] for frame in kept for f in frame["applied"]})
    data = {
        "name": clean(header.name),
        "model": header.model,
        "seed": header.seed,
        "run": header.run,
        "source": header.source,
        "rules": {i: header.rules[i] for i in fired},
        "frames": kept,
        "end": None
        if trace.end is None
        else {k: getattr(trace.end, k) for k in ("halted", "step", "reason", "message")},
        "series": {
            "x": [_real(v) for v in (lines.times or lines.steps)],
            "timed": lines.times is not None,
            "lines": [[name, [_real(v) for v in values]] for name, values in lines.lines],
            "other": lines.other and [_real(v) for v in lines.other],
            "numOther": lines.num_other,
            "membranes": lines.membranes,
        },
        "thinned": [len(kept), frames.seen] if len(kept) < frames.seen else None,
    }
    # No `<` in the data: nothing in it can end the script element or open a comment in it.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    nonce = hashlib.sha256(text.encode()).hexdigest()[:24]
    title = clean(header.name)[:100] or "P system"
    return environment.get_template("view.html.j2").render(title=title, data=text, nonce=nonce)


def _weighed(frame: Frame) -> tuple[int, dict[str, Any]]:
    data: dict[str, Any] = {"step": frame.step, "size": frame.num_membranes, "graph": frame.is_graph}
    data["time"] = None if frame.time is None else _real(frame.time)
    data["environment"] = _bag(frame.environment)
    data["totals"] = _bag(frame.totals(), 4 * OBJECTS)
    data["values"] = None if frame.values is None else [[k, _real(v)] for k, v in list(frame.values.items())[:2000]]
    summed = frame.counts is not None
    if frame.counts is not None:
        nodes = [Node(k, 0, "", 0, t.objects, t.membranes) for k, t in list(frame.counts.items())[:NODES]]
        hidden = 0
    else:
        nodes, hidden = forest(frame, merge=not frame.links, most=NODES, deepest=DEEPEST)
    data |= {"summed": summed, "hidden": hidden, "tree": [_node(n) for n in nodes]}
    shown = {n.id for n in nodes}
    data["links"] = [link for link in frame.links if shown.issuperset(link)][:4000]
    times: dict[int, int] = {}
    for f in frame.applied:
        times[f.rule] = times.get(f.rule, 0) + f.times
    data["applied"] = [[rule, _whole(n)] for rule, n in sorted(times.items())][:1000]
    weight = len(data["totals"]) + len(data["applied"]) + len(data["links"]) + len(data["values"] or ())
    return weight + sum(_weight(n) for n in nodes) + 1, data


def _weight(node: Node) -> int:
    return 2 + min(len(node.objects), OBJECTS) + sum(map(_weight, node.children))


def _node(node: Node) -> dict[str, Any]:
    """A membrane as the page reads it; as deep as `forest` allows."""
    data: dict[str, Any] = {"id": node.id, "label": node.label, "objects": _bag(node.objects)}
    extra = {"charge": node.charge, "name": node.name, "closed": node.closed, "hidden": node.hidden}
    data |= {k: v for k, v in extra.items() if v}
    if node.times > 1:
        data["times"] = node.times
    if len(node.objects) > OBJECTS:
        data["more"] = len(node.objects) - OBJECTS
    if node.children:
        data["children"] = [_node(c) for c in node.children]
    return data


def _bag(objects: Mapping[str, int], most: int = OBJECTS) -> list[list[Any]]:
    if len(objects) > most:
        objects = dict(sorted(objects.items(), key=lambda item: -item[1])[:most])
    return [[name, _whole(count)] for name, count in sorted(objects.items())]


def _whole(count: int) -> int | str:
    """JavaScript holds integers exactly up to 2**53: larger ones go as text."""
    if count < 2**53:
        return count
    return str(count) if count < 10**40 else f"about 10^{int(math.log10(count))}"


def _real(value: float) -> float | None:
    """None for what JavaScript has no number for."""
    return value if abs(value) <= sys.float_info.max else None

"""The picture of a run: the last configuration as nested boxes beside the counts over steps, as SVG by matplotlib."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .notation import charge_text, clean
from .reading import Trace, read_trace
from .shape import Node, Sample, Series, Thinned, forest, sample, series
from .trace import Frame, TraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1200
"""Points of a line at most; longer runs are thinned evenly."""
LISTED = 40
"""Membranes drawn one by one; more are grouped."""
COLOURS = ("#3366cc", "#d9682b", "#2a9d6f", "#b8439b", "#8a6d1f", "#17a2b8", "#c0392b", "#6c5ce7")
FILLS = {0: ("#f4f5f7", "#8b94a3"), 1: ("#fdebdd", "#d9682b"), -1: ("#e1ecfb", "#3366cc")}
INK, PALE = "#1f2933", "#6b7683"


def plot(trace: Trace | str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes the SVG. The same trace gives the same bytes. Raises TraceError without matplotlib or configurations."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TraceError("pictures need matplotlib: pip install 'echoc[plot]'") from error
    trace = trace if isinstance(trace, Trace) else read_trace(trace)
    kept: Thinned[Sample] = Thinned(POINTS, budget=4_000_000)
    last: Frame | None = None
    for frame in trace:
        kept.offer(lambda frame=frame: sample(frame))  # type: ignore[misc]
        last = frame
    if last is None:
        raise TraceError(f"{trace.name}: no configuration to draw")
    style: Any = {
        "svg.hashsalt": "echoc",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": PALE,
        "xtick.color": PALE,
        "ytick.color": PALE,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 6.2) if last.values is None else (9, 5.4), facecolor="white")
        FigureCanvasSVG(figure)
        title = clean(trace.header.name) or "P system"
        figure.text(0.03, 0.955, shorten(title, 60), fontsize=14, weight="bold", va="center")
        note = f"{shorten(clean(trace.header.model), 30)}, seed {trace.header.seed}, step {last.step}: {_ending(trace)}"
        figure.text(0.03, 0.912, note, fontsize=9, color=PALE, va="center")
        if last.values is None:
            _configuration(figure.add_axes((0.02, 0.07, 0.47, 0.81)), last)
            chart = figure.add_axes((0.565, 0.1, 0.31, 0.76))
        else:
            chart = figure.add_axes((0.09, 0.11, 0.7, 0.76))
        _lines(chart, series(kept.items()))
        try:
            figure.savefig(os.fspath(path), format="svg", metadata={"Date": None, "Creator": "echoc"})
        except OSError as error:
            raise TraceError(f"{path}: the picture cannot be written: {error.strerror}") from error


def _ending(trace: Trace) -> str:
    if trace.end is None:
        return "interrupted"
    return f"{'halted' if trace.end.halted else 'stopped'}, {trace.end.reason}"


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(slots=True)
class _Box:
    """A membrane laid out, in units of a character's height: size, its lines of text, the places of its children."""

    node: Node
    lines: list[str]
    width: float = 0.0
    height: float = 0.0
    places: list[tuple[float, float, _Box]] | None = None


CHARACTER, LINE, PAD, GAP = 0.62, 1.35, 0.7, 0.7


def _layout(node: Node, budget: int) -> _Box:
    """Children left to right in rows, about 1.3 times as wide as high. Recursion is as deep as `forest` allows."""
    box = _Box(node, _label_lines(node, budget))
    children = sorted((_layout(c, budget) for c in node.children), key=lambda b: -b.height)
    area = sum((b.width + GAP) * (b.height + GAP) for b in children)
    wide = max([math.sqrt(area * 1.5), *(b.width for b in children)])
    top = PAD + LINE * len(box.lines) + (0.3 if box.lines else 0)
    x, y, row, widest = PAD, top, 0.0, 0.0
    box.places = []
    for child in children:
        if x > PAD and x + child.width > PAD + wide:
            x, y, row = PAD, y + row + GAP, 0.0
        box.places.append((x, y, child))
        x += child.width + GAP
        row, widest = max(row, child.height), max(widest, x - GAP)
    text = max((len(line) for line in box.lines), default=0) * CHARACTER + 2 * PAD
    box.width = max(text, widest + PAD, 5.0)
    box.height = y + row + (PAD if children else 0.3) + 0.4
    if not children:
        box.height = top + PAD * 0.6
    return box


def _label_lines(node: Node, budget: int) -> list[str]:
    head = f"{shorten(clean(node.name), 16)} " if node.name else ""
    head += f"{shorten(clean(node.label), 16)} {charge_text(node.charge).replace('-', '−')}".rstrip()
    head += f"  closed {node.closed}" if node.closed else ""
    head += f"      ×{node.times}" if node.times > 1 else ""
    pieces = [
        shorten(clean(name), 14) + (f"·{count if count < 10**7 else f'{_log_float(count):.3g}'}" if count > 1 else "")
        for name, count in sorted(node.objects.items(), key=lambda item: (-item[1], item[0]))
    ]
    lines, line, limit = [head], "", 34 if node.children else 22
    for i, piece in enumerate(pieces):
        if line and len(line) + len(piece) + 2 > limit:
            lines.append(line)
            line = ""
            if len(lines) > budget:
                lines.append(f"+ {len(pieces) - i} more objects")
                break
        line = f"{line}  {piece}" if line else piece
    if line:
        lines.append(line)
    return [*lines, *([f"+ {node.hidden} membranes inside"] if node.hidden else [])]


def _log_float(count: int) -> float:
    try:
        return float(count)
    except OverflowError:
        return math.inf


def _configuration(axes: Axes, frame: Frame) -> None:
    """Nested rounded boxes; a graph's cells stand side by side in a circle with their links."""
    from matplotlib.patches import FancyBboxPatch

    axes.set_axis_off()
    if frame.counts is not None:
        nodes = [Node(k, 0, "", 0, t.objects, t.membranes) for k, t in list(frame.counts.items())[:LISTED]]
        hidden = max(0, len(frame.counts) - LISTED)
    else:
        merge = len(frame.membranes) > LISTED and not frame.links
        nodes, hidden = forest(frame, merge=merge, most=LISTED, deepest=12)
    budget = 4 if len(frame.membranes) < 12 else 2
    world = _layout(Node("", 0, "", 0, {}, children=nodes, hidden=0), budget)
    world.lines = []
    if frame.links and world.places:
        _circle(world)
    scale = min(axes.bbox.width / world.width, axes.bbox.height / world.height)
    points = 72 / axes.figure.dpi  # pixels to points
    size = min(9.5, scale * points * 0.98)
    width, height = axes.bbox.width / scale, axes.bbox.height / scale
    if size == 9.5:  # few membranes: do not blow the boxes up beyond their text
        grow = scale * points * 0.98 / size
        width, height = width * grow, height * grow
    axes.set_xlim(-(width - world.width) / 2, world.width + (width - world.width) / 2)
    axes.set_ylim(height - 0.3, -0.3)
    work = [(0.0, 0.0, world)]
    centres: dict[int, tuple[tuple[float, float], FancyBboxPatch]] = {}
    while work:
        x, y, box = work.pop()
        if box is not world:
            fill, edge = FILLS[(box.node.charge > 0) - (box.node.charge < 0)]
            style = "round,pad=0,rounding_size=0.55"
            shape = FancyBboxPatch(
                (x, y), box.width, box.height, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=1.1, zorder=3
            )
            axes.add_patch(shape)
            centres[box.node.id] = ((x + box.width / 2, y + box.height / 2), shape)
            for i, line in enumerate(box.lines):
                at = (x + PAD, y + PAD * 0.55 + LINE * (i + 0.5))
                bold: dict[str, Any] = {"weight": "bold", "color": edge if box.node.charge else INK} if i == 0 else {}
                axes.text(*at, line, fontsize=size * 0.95, va="center", zorder=4, **bold)
        work.extend((x + cx, y + cy, child) for cx, cy, child in box.places or [])
    for source, to in frame.links:
        if source in centres and to in centres:
            (start, patch), (stop, other) = centres[source], centres[to]
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": "#7d8794", "lw": 1, "shrinkA": 1, "shrinkB": 3}
            arrow |= {"connectionstyle": "arc3,rad=0.12", "patchA": patch, "patchB": other}
            axes.annotate("", stop, start, arrowprops=arrow, zorder=2)
    notes = [f"environment: {shorten(_pairs(frame), 70)}"] if frame.environment else []
    notes += [f"{hidden} more membranes"] if hidden else []
    notes += ["all membranes of a label in one box, objects summed"] if frame.counts is not None else []
    axes.text(0.5, -0.02, "   ".join(notes), transform=axes.transAxes, ha="center", va="top", color=PALE)


def _pairs(frame: Frame) -> str:
    return ", ".join(f"{clean(k)}·{v}" if v > 1 else clean(k) for k, v in sorted(frame.environment.items()))


def _circle(world: _Box) -> None:
    boxes = [box for _, _, box in world.places or []]
    boxes.sort(key=lambda box: box.node.id)
    wide, high = max(b.width for b in boxes), max(b.height for b in boxes)
    radius = max(wide, high) * 0.5 + (wide + high) * len(boxes) / (2 * math.pi) * 0.75
    turn = 2 * math.pi / len(boxes)
    world.places = [
        (
            radius + wide / 2 + radius * math.sin(i * turn) - b.width / 2,
            radius + high / 2 - radius * math.cos(i * turn) - b.height / 2,
            b,
        )
        for i, b in enumerate(boxes)
    ]
    world.width, world.height = 2 * radius + wide, 2 * radius + high


def _lines(axes: Axes, data: Series) -> None:
    x = data.times or data.steps
    drawn: list[tuple[str, tuple[float, ...], dict[str, Any]]] = []
    if data.membranes is not None:
        membranes = tuple(map(float, data.membranes))
        drawn.append(("membranes", membranes, {"color": INK, "linestyle": (0, (5, 2)), "linewidth": 1.6}))
    for i, (name, values) in enumerate(data.lines):
        dashes = "-" if i < len(COLOURS) else ":"
        drawn.append((name, values, {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.7, "linestyle": dashes}))
    if data.other is not None:
        drawn.append(
            (f"other ({data.num_other})", data.other, {"color": "#a4adb8", "linewidth": 1.3, "linestyle": "-"})
        )
    drawn = [(n, tuple(v if abs(v) < 1e300 else math.nan for v in values), look) for n, values, look in drawn]
    positive = [v for _, values, _ in drawn for v in values if v > 0]
    negative = any(v < 0 for _, values, _ in drawn for v in values)
    few = len(x) <= 40
    for name, values, look in drawn:
        marker = "o" if few and look["linestyle"] == "-" else ""
        axes.plot(x, values, label=shorten(clean(name), 22), marker=marker, markersize=3, **look)
    if positive and not negative and data.membranes is not None and max(positive) / min(positive) >= 1000:
        from matplotlib.ticker import FuncFormatter

        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v < 1e6 else f"{v:.0e}"))
    if data.membranes is not None:
        axes.set_ylim(bottom=0)
    axes.grid(True, color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c3cad3")
    axes.set_xlabel("time" if data.times else "step")
    axes.set_ylabel("count" if data.membranes is not None else "value")
    if not data.times:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if drawn:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, borderaxespad=0, fontsize=9)

"""The report as tables of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from echoc.bench.report import Ratio, Report, Result, Shared, Start, format_names
from echoc.bench.sampling import count_clean

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def tables(report: Report) -> Iterator[Table]:
    """What was found, the line against the best peer first."""
    yield "against the best peer", BEST_COLUMNS, best_rows(report)
    yield "results", RESULT_COLUMNS, [result_row(result) for result in report.results]
    yield "speed-up of echoc", RATIO_COLUMNS, [ratio_row(ratio) for ratio in report.ratios]
    yield "speed beside a busy process on one core", SHARED_COLUMNS, [shared_row(shared) for shared in report.shared]
    yield (
        "a fresh process, page cache warm, and its memory",
        START_COLUMNS,
        [start_row(start) for start in report.starts],
    )
    yield "not timed", ["engine", "what", "why"], [list(entry.values()) for entry in report.unable]


BEST_COLUMNS = [
    "workload",
    "formats",
    "echoc tokens/s",
    "of the limit",
    "best peer",
    "tokens/s",
    "ratio",
    "range",
    "cores",
]


def best_rows(report: Report) -> list[list[str]]:
    """A line for each result of echoc's: its fraction of the machine's limit and its ratio to the fastest peer."""
    rows = []
    for own in (result for result in report.results if result.engine == "echoc" and not result.beside):
        rate = own.tokens_per_second
        if rate is None or own.floor_fraction is None:
            continue
        row = [own.label, own.formats, f"{rate.median:.1f}", f"{own.floor_fraction:.0%} of {own.floor.bound}"]
        key = (own.workload, own.weights_dtype, own.kv_dtype)
        ratios = [ratio for ratio in report.ratios if (ratio.workload, ratio.weights_dtype, ratio.kv_dtype) == key]
        if ratios:
            best = min(ratios, key=lambda ratio: ratio.speedup.median)
            row += [best.peer, _rate_of(report, best), *_speedup_cells(best)]
        else:
            row += ["", "", "", ""]
        rows.append([*row, own.state or ""])
    return rows


def _rate_of(report: Report, ratio: Ratio) -> str:
    key = (ratio.peer, ratio.workload, ratio.weights_dtype, ratio.kv_dtype, 0)
    for result in report.results:
        found = (result.engine, result.workload, result.weights_dtype, result.kv_dtype, result.beside)
        if found == key and (rate := result.tokens_per_second):
            return f"{rate.median:.1f}"
    return ""


def _speedup_cells(ratio: Ratio) -> list[str]:
    value = ratio.speedup
    return [f"{value.median:.2f}x", f"{value.low:.2f} to {value.high:.2f}"]


SHARED_COLUMNS = ["workload", "weights", "engine", "of the speed alone", "range", "rounds"]


def shared_row(shared: Shared) -> list[str]:
    """Cells of one line of the table of shared cores."""
    value = shared.fraction
    cells = [shared.workload.label, shared.weights_dtype, shared.engine]
    return [*cells, f"{value.median:.0%}", f"{value.low:.0%} to {value.high:.0%}", str(value.count)]


START_COLUMNS = ["engine", "weights", "to first token", "range", "served", "PSS", "RSS", "weights", "KV", "beyond both"]


def start_row(start: Start) -> list[str]:
    """Cells of one line of the table of fresh processes."""
    seconds = start.seconds
    sizes = (start.proportional, start.resident, start.weights, start.keys_values, start.beyond)
    return [
        start.engine,
        start.weights_dtype,
        f"{seconds.median:.2f} s",
        f"{seconds.low:.2f} to {seconds.high:.2f}",
        start.serving.label,
        *(f"{size / 1e6:.0f} MB" for size in sizes),
    ]


def result_row(result: Result) -> list[str]:
    """Cells of one line of the table of results."""
    cells = [result.label, result.formats, result.engine]
    rate = result.tokens_per_second
    if result.seconds and rate and result.floor_fraction is not None:
        cells += [
            format_seconds(result.seconds.median),
            f"{rate.median:.1f}",
            f"{rate.low:.1f} to {rate.high:.1f}",
            f"{result.floor_fraction:.0%} of {result.floor.bound}",
            result.state or "",
        ]
    else:
        shown = f"({format_seconds(result.disturbed)})" if result.disturbed else ""
        cells += [shown, "", "", "", "no clean sample"]
    clean = count_clean(result.samples)
    return [*cells, f"{clean} of {len(result.samples)}"]


RESULT_COLUMNS = ["workload", "weights", "engine", "time", "tokens/s", "range", "floor", "cores", "clean samples"]
RATIO_COLUMNS = ["workload", "weights", "against", "speed-up", "range", "rounds", "cores"]


def ratio_row(ratio: Ratio) -> list[str]:
    """Cells of one line of the table of ratios."""
    value = ratio.speedup
    return [
        ratio.workload.label,
        format_names(ratio.weights_dtype, ratio.kv_dtype),
        ratio.peer,
        f"{value.median:.2f}x",
        f"{value.low:.2f} to {value.high:.2f}",
        str(value.count),
        ratio.state,
    ]


def limit_lines(limits: dict[str, Any]) -> list[str]:
    """The machine's limits, in words."""
    giga = 1e9
    lines = [
        (
            f"reads {limits['read_one'] / giga:.1f} GB/s on one thread, {limits['read_all'] / giga:.1f} on "
            f"{limits['threads']} (over {limits['read_bytes'] / giga:.2f} GB)"
        ),
        (
            f"f32 multiply-add {limits['fma_f32_one'] / giga:.0f} GFLOP/s on one thread, "
            f"{limits['fma_f32'] / giga:.0f} on {limits['threads']}"
        ),
    ]
    units = {
        "dot_bf16": ("bf16 dot", "GFLOP/s"),
        "dot_int8": ("int8 dot", "GOP/s"),
        "amx_bf16": ("AMX bf16", "GFLOP/s"),
        "amx_int8": ("AMX int8", "GOP/s"),
    }
    dots = [f"{name} {limits[key] / giga:.0f} {unit}" for key, (name, unit) in units.items() if limits[key]]
    return [*lines, *([f"on {limits['threads']} threads: {', '.join(dots)}"] if dots else [])]


def format_seconds(seconds: float) -> str:
    """Three or four digits in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"

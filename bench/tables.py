"""The report as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from echoc.bench.report import Ratio, Report, Result, Shared, Start, best_limits, limits_of
from echoc.bench.sampling import count_clean, least_disturbed
from echoc.bench.states import CORE_STATES

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows
NOT_CLEAN = "no clean sample"


def tables(report: Report) -> Iterator[Table]:
    """What was found, the line against the best peer first."""
    ratios = report.ratios()
    yield "against the best peer", BEST_COLUMNS, best_rows(report, ratios)
    yield "results", RESULT_COLUMNS, [row for result in report.results for row in result_rows(report, result)]
    yield "speed-up of echoc", RATIO_COLUMNS, [ratio_row(ratio) for ratio in ratios]
    yield "speed beside a busy process on one core", SHARED_COLUMNS, [shared_row(shared) for shared in report.shared()]
    yield (
        "a fresh process, page cache warm, and its memory",
        START_COLUMNS,
        [start_row(start) for start in report.starts],
    )
    yield "not timed", ["engine", "what", "why"], [list(entry.values()) for entry in report.unable]


BEST_COLUMNS = [
    "workload",
    "formats",
    "cores",
    "echoc tokens/s",
    "of the limit",
    "best peer",
    "tokens/s",
    "ratio",
    "range",
    "peers not in this state",
]


def best_rows(report: Report, ratios: Sequence[Ratio]) -> list[list[str]]:
    """A line for each result of echoc's and each state of the cores it has clean samples of: its fraction of the
    machine's limit, its ratio to the fastest peer in that state, and the peers that were timed in other states only."""
    rows = []
    for own in (result for result in report.results if result.engine == "echoc" and not result.beside):
        if not own.states:
            rows.append([own.label, own.row.formats, NOT_CLEAN, *[""] * 7])
        peers = [peer for peer in report.results if peer.row == own.row and peer.engine != "echoc" and not peer.beside]
        for state in comparable(own.states):
            rate = own.tokens_per_second(state)
            assert rate is not None
            row = [own.label, own.row.formats, state, f"{rate.median:.1f}", _floor_cell(report, own, state)]
            here = [ratio for ratio in ratios if (ratio.row, ratio.state) == (own.row, state)]
            if here:
                best = min(here, key=lambda ratio: ratio.speedup.median)
                peer = report.find(best.peer, best.row)
                row += [best.peer, _rate_cell(peer, state) if peer else "", *_speedup_cells(best)]
            else:
                row += ["", "", "", ""]
            others = [peer for peer in peers if peer.engine not in {ratio.peer for ratio in here}]
            rows.append([*row, "; ".join(map(_elsewhere, others))])
    return rows


def comparable(states: Sequence[str]) -> Sequence[str]:
    """States that a line each is worth: 'changed' only where there is no other."""
    return [state for state in states if state != "changed"] or states


def _elsewhere(peer: Result) -> str:
    """A peer with its speed in another state of the cores, or in samples that were refused."""
    if not peer.states:
        disturbed = least_disturbed(peer.samples)
        shown = f"{peer.row.workload.tokens / disturbed:.1f}, " if disturbed else ""
        return f"{peer.engine} ({shown}{NOT_CLEAN})"
    return f"{peer.engine} {_rate_cell(peer, peer.states[0])} ({peer.states[0]})"


def _rate_cell(result: Result, state: str) -> str:
    rate = result.tokens_per_second(state)
    return f"{rate.median:.1f}" if rate else ""


def _floor_cell(report: Report, result: Result, state: str) -> str:
    floor, seconds = report.floor(result, state), result.seconds(state)
    return f"{floor.seconds / seconds.median:.0%} of {floor.bound}" if floor and seconds else ""


def _speedup_cells(ratio: Ratio) -> list[str]:
    value = ratio.speedup
    return [f"{value.median:.2f}x", f"{value.low:.2f} to {value.high:.2f}"]


SHARED_COLUMNS = ["workload", "weights", "engine", "of the speed alone", "range", "rounds", "cores"]


def shared_row(shared: Shared) -> list[str]:
    """Cells of one line of the table of shared cores."""
    value = shared.fraction
    cells = [shared.row.workload.label, shared.row.weights_dtype, shared.engine]
    return [*cells, f"{value.median:.0%}", f"{value.low:.0%} to {value.high:.0%}", str(value.count), shared.state]


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


def result_rows(report: Report, result: Result) -> list[list[str]]:
    """Lines of the table of results: one for each state of the cores that there are clean samples of."""
    cells = [result.label, result.row.formats, result.engine]
    if not result.states:
        disturbed = least_disturbed(result.samples)
        shown = f"({format_seconds(disturbed)})" if disturbed else ""
        return [[*cells, shown, "", "", "", NOT_CLEAN, f"0 of {len(result.samples)}"]]
    rows = []
    for state in result.states:
        seconds, rate = result.seconds(state), result.tokens_per_second(state)
        assert seconds is not None and rate is not None
        rows.append(
            [
                *cells,
                format_seconds(seconds.median),
                f"{rate.median:.1f}",
                f"{rate.low:.1f} to {rate.high:.1f}",
                _floor_cell(report, result, state),
                state,
                f"{count_clean(result.samples, state)} of {len(result.samples)}",
            ]
        )
    return rows


RESULT_COLUMNS = ["workload", "weights", "engine", "time", "tokens/s", "range", "floor", "cores", "clean samples"]
RATIO_COLUMNS = ["workload", "weights", "against", "speed-up", "range", "rounds", "cores"]


def ratio_row(ratio: Ratio) -> list[str]:
    """Cells of one line of the table of ratios."""
    value = ratio.speedup
    return [
        ratio.row.workload.label,
        ratio.row.formats,
        ratio.peer,
        f"{value.median:.2f}x",
        f"{value.low:.2f} to {value.high:.2f}",
        str(value.count),
        ratio.state,
    ]


def limit_lines(report: Report) -> Iterator[str]:
    """The machine's limits in words: the best readings in each state of the cores."""
    units = {
        "dot_bf16": ("bf16 dot", "GFLOP/s"),
        "dot_int8": ("int8 dot", "GOP/s"),
        "amx_bf16": ("AMX bf16", "GFLOP/s"),
        "amx_int8": ("AMX int8", "GOP/s"),
    }
    giga, threads = 1e9, report.threads
    for state in CORE_STATES:
        readings = [limits for limits in report.limits if limits["core_state"] == state]
        if not readings:
            continue
        best = best_limits([limits_of(limits) for limits in readings])
        yield (
            f"{state} ({len(readings)} of {len(report.limits)} readings): reads {best.read_one / giga:.1f} GB/s on one "
            f"thread, {best.read_all / giga:.1f} on {threads} (over {best.read_bytes / giga:.2f} GB and more)"
        )
        rates = {name: getattr(best, name) for name in units}
        dots = [f"{name} {rates[key] / giga:.0f} {unit}" for key, (name, unit) in units.items() if rates[key]]
        multiply = f"f32 multiply-add {best.fma_f32 / giga:.0f} GFLOP/s ({best.fma_f32_one / giga:.0f} on one thread)"
        yield f"  on {threads} threads: {', '.join([multiply, *dots])}"
        lines = sorted(limits["line_ns"] for limits in readings if limits["line_ns"])
        if lines:
            yield f"  a cache line goes from core to core in {lines[0]:.0f} to {lines[-1]:.0f} ns"


def format_seconds(seconds: float) -> str:
    """Three or four digits in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"

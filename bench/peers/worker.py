"""The child process in which one engine runs, in whatever Python has that engine installed.

Run as a script: `python worker.py ENGINE_FILE JSON_OPTIONS`. Uses the standard library only, because the interpreter
is the peer's and knows nothing of echoc. Requests and replies are JSON lines on stdin and stdout; what libraries
print to stdout goes to stderr. ENGINE_FILE defines `open_engine(options, meter)`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

TICKS = os.sysconf("SC_CLK_TCK")


class Engine(Protocol):
    """What the harness asks of an engine. Token ids are random, decoding is greedy and ignores end tokens.

    Each method does its set-up first and runs only the part to be timed inside `with meter:`.
    """

    def describe(self) -> dict[str, Any]:
        """Version, weight format and settings that matter for speed."""

    def prefill(self, num_tokens: int) -> None:
        """Times one forward pass over a fresh prompt, logits of its last token included."""

    def decode(self, context: int, num_tokens: int) -> None:
        """Times `num_tokens` greedy steps after a context of `context` tokens."""

    def batched(self, sequences: int, context: int, num_tokens: int) -> None:
        """Times `num_tokens` greedy steps of `sequences` sequences at once, each after its own context."""

    def continuous(self, sequences: int, requests: list[list[int]]) -> None:
        """Times all requests, [prompt, output] lengths, from the first prompt to the last token: at most `sequences`
        at once, the next one entering when one ends. Where an engine batches; others leave the method out."""


class Meter:
    """Measures the block under `with`: wall time, and what the system did with the cores meanwhile."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.usage: dict[str, float] = {}
        self._wall = 0.0
        self._before: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self._before = snapshot()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        after = snapshot()
        self.usage = {key: max(0.0, after[key] - self._before[key]) for key in after}


def snapshot() -> dict[str, float]:
    """Counters of this process and of the machine, in seconds (switches in counts).

    `cpu`: user and system time of the process. `run_delay`: time its threads were runnable without a core
    (/proc/self/task/*/schedstat). `machine_busy`, `machine_steal`: all CPUs, from /proc/stat.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy, steal = machine_ticks()
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "involuntary_switches": float(usage.ru_nivcsw),
        "run_delay": run_delay_seconds(),
        "machine_busy": busy / TICKS,
        "machine_steal": steal / TICKS,
    }


def run_delay_seconds() -> float:
    """Seconds that this process's threads have waited for a core; 0 where the kernel does not say."""
    total = 0
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return 0.0
    for task in tasks:
        try:
            with open(f"/proc/self/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # the thread ended, or the kernel keeps no such counter
    return total / 1e9


def machine_ticks() -> tuple[int, int]:
    """Ticks that all CPUs together spent busy and stolen by the hypervisor; zeros where /proc/stat is missing."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields + [0] * (8 - len(fields))
    return user + nice + system + irq + softirq, steal


def peak_memory_bytes() -> int:
    """The largest resident size this process had, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def resident_memory_bytes() -> int:
    """The resident size now, in bytes; 0 where /proc is missing."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def load_module(path: str) -> Any:
    """The engine's module, by file: its folder never enters sys.path, where its name could hide a package."""
    spec = importlib.util.spec_from_file_location(f"echoc_engine_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(engine: Engine, meter: Meter, request: dict[str, Any]) -> dict[str, Any]:
    """Runs one request, {"op": "prefill"|"decode"|"batched", ...arguments}, and reports its time and usage."""
    arguments = {key: value for key, value in request.items() if key != "op"}
    getattr(engine, request["op"])(**arguments)
    return {
        "seconds": meter.seconds,
        "usage": meter.usage,
        "resident_bytes": resident_memory_bytes(),
        "peak_bytes": peak_memory_bytes(),
    }


def failure(error: BaseException) -> dict[str, Any]:
    """An error as a reply: the harness prints the message, and the trace with --debug."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {"error": f"{type(error).__name__}: {error}", "missing": missing, "trace": traceback.format_exc()}


def serve(engine_file: str, options: dict[str, Any]) -> None:
    """Opens the engine, says so, and answers requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    if options.get("ordinary_priority") and hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # threads made from here on inherit it
    meter = Meter()
    start = time.perf_counter()
    try:
        engine: Engine = load_module(engine_file).open_engine(options, meter)
        described = engine.describe()
    except Exception as error:  # any failure of a foreign engine becomes a reply
        reply(failure(error))
        return
    reply({"ready": described, "load_seconds": time.perf_counter() - start, "python": sys.version.split()[0]})
    for line in sys.stdin:
        try:
            reply(answer(engine, meter, json.loads(line)))
        except Exception as error:
            reply(failure(error))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the harness, which closes stdin
    serve(sys.argv[1], json.loads(sys.argv[2]))

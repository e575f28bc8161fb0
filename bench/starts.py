"""Fresh processes: seconds from starting an engine to its first token, and its memory once it has served a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from echoc.bench.floors import ModelShape
from echoc.bench.process import EngineProcess, EngineSpec
from echoc.bench.report import Start
from echoc.bench.stats import summarise
from echoc.bench.workloads import Workload
from echoc.errors import EchoError

FIRST_PROMPT = 8  # tokens
SERVING = Workload("batched", 512, 16, 8)


def measure_start(
    spec: EngineSpec, shape: ModelShape, rounds: int, timeout: float, say: Callable[[str], None]
) -> Start:
    """Starts the engine `rounds` times after a first time that warms the page cache; the last process serves a batch.

    Seconds run from the start of the interpreter to the first token after a prompt of 8, the reply included.
    """
    seconds = []
    for number in range(rounds + 1):
        say(f"starting {spec.name} {spec.weights_dtype}, {number} of {rounds}")
        begun = time.perf_counter()
        with EngineProcess(spec, timeout) as engine:
            engine.request("prefill", num_tokens=FIRST_PROMPT)
            seconds.append(time.perf_counter() - begun)
            if number == rounds:
                operation, arguments = SERVING.request()
                engine.request(operation, **arguments)
                memory = memory_of(engine.pid)
    held = SERVING.sequences * (SERVING.context + SERVING.num_tokens)
    return Start(
        spec.name,
        spec.weights_dtype,
        summarise(seconds[1:]),
        SERVING,
        spec.weight_bytes,
        int(shape.kv_bytes(held)),
        memory["Rss"],
        memory["Pss"],
    )


def memory_of(pid: int) -> dict[str, int]:
    """Rss, Pss and the other sums of /proc/PID/smaps_rollup, in bytes."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    try:
        lines = path.read_text(encoding="ascii").splitlines()[1:]
        return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError) as error:
        raise EchoError(f"{path} cannot be read ({error}): memory is measured on Linux alone") from error

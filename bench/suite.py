"""All of a CPU's workloads for one model, as stages of one run; and making beforehand what they need."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from echoc.bench.engines import Setting, make_engine, open_model
from echoc.bench.harness import BenchOptions, Progress
from echoc.bench.process import UnsupportedError
from echoc.bench.report import format_names
from echoc.bench.sampling import SamplingPlan
from echoc.errors import EchoError

SMALLEST = "int4"  # the weights beside which keys, values and scheduling show most
LONG_CONTEXT = 8192
PLACES = 32
SHARED_PATIENCE = 120.0  # s: engines that spin may take a second a token beside a busy process


STAGES = ("table", "queue", "long", "shared", "starts")


def suite_stages(options: BenchOptions, names: Sequence[str] = STAGES) -> list[BenchOptions]:
    """The stages of these names, in the order of STAGES.

    table: what the options say in every format they name. With the smallest weights of these: queue, requests over 32
    places; long, decode after 8192 tokens with keys and values in 16 and 8 bits; shared, decode beside a busy process.
    starts: fresh processes of every format. The last three are against llama.cpp where it is named.
    """
    if unknown := [name for name in names if name not in STAGES]:
        raise EchoError(f"unknown stages {', '.join(unknown)}: wanted some of {', '.join(STAGES)}")
    dtypes = list(options.weights_dtypes)  # none: an artifact's own
    small = [SMALLEST] if SMALLEST in dtypes else dtypes[-1:]
    rival = [name for name in options.vs if name == "llama.cpp"]
    one, two = (_at_most(options.plan, rounds) for rounds in (1, 2))
    replace = dataclasses.replace
    none = replace(options, weights_dtypes=small, prefill=(), decode_tokens=0, batches=())
    decode = replace(none, decode_tokens=options.decode_tokens, vs=rival)
    stages = [
        options,
        replace(none, continuous=PLACES, plan=one),
        replace(decode, contexts=(LONG_CONTEXT,), kv_dtypes=("bf16", "int8"), plan=two),
        replace(
            decode,
            beside_busy=True,
            decode_tokens=min(options.decode_tokens, 8),
            plan=two,
            timeout=SHARED_PATIENCE,
        ),
        replace(none, weights_dtypes=dtypes, starts=True, vs=rival, plan=two),
    ]
    return [stage for name, stage in zip(STAGES, stages, strict=True) if name in names]


def _at_most(plan: SamplingPlan, rounds: int) -> SamplingPlan:
    """The plan with no more than so many clean samples wanted, and twice as many tries."""
    rounds = min(plan.rounds, rounds)
    return dataclasses.replace(plan, rounds=rounds, max_rounds=max(rounds, min(plan.max_rounds, 2 * rounds)))


def prepare(stages: Sequence[BenchOptions], on_progress: Callable[[Progress], None]) -> Iterator[str]:
    """Makes checkpoint, conversions and artifacts of all stages, a line for each with the seconds it took."""
    done: set[tuple[str, str, str | None, bool]] = set()
    for number, stage in enumerate(stages):
        model = open_model(stage.model, stage.checkpoint, stage.work)

        def say(text: str, number: int = number) -> None:
            on_progress(Progress(text, number, len(stages)))

        for dtype in stage.weights_dtypes or ("bf16",):
            for kv_dtype in stage.kv_dtypes:
                for name in [*(["echoc"] if stage.own else []), *stage.vs]:
                    key = (name, dtype, kv_dtype, bool(stage.continuous))
                    if key in done:
                        continue
                    done.add(key)
                    begun = time.perf_counter()
                    setting = Setting(
                        dtype,
                        stage.threads,
                        stage.seed,
                        stage.work,
                        stage.peer_pythons,
                        kv_dtype=kv_dtype,
                        continuous=bool(stage.continuous),
                        note=say,
                    )
                    try:
                        make_engine(name, model, setting)
                        outcome = f"ready after {time.perf_counter() - begun:.1f} s"
                    except UnsupportedError as error:
                        outcome = str(error)
                    yield f"{model.name} {name} {format_names(dtype, kv_dtype)}: {outcome}"

"""All of a CPU's workloads for one model, as stages of one run; and making beforehand what they need."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from echoc.bench.engines import Setting, make_engine, open_model
from echoc.bench.harness import BenchOptions, Progress
from echoc.bench.process import UnsupportedError
from echoc.bench.report import format_names

SMALLEST = "int4"  # the weights beside which keys, values and scheduling show most
LONG_CONTEXT = 8192
PLACES = 32


def suite_stages(options: BenchOptions) -> list[BenchOptions]:
    """The stages of a whole run.

    First what the options say in every format they name, then with the smallest weights of these: a queue of requests
    over 32 places; decode after 8192 tokens with keys and values in 16 and 8 bits and decode beside a busy process,
    against llama.cpp where it is named; fresh processes of every format.
    """
    dtypes = list(options.weights_dtypes) or ["bf16"]
    small = [SMALLEST if SMALLEST in dtypes else dtypes[-1]]
    rival = [name for name in options.vs if name == "llama.cpp"]
    one = dataclasses.replace(options.plan, rounds=min(options.plan.rounds, 2), max_rounds=options.plan.max_rounds)
    replace = dataclasses.replace
    none = replace(options, weights_dtypes=small, prefill=(), decode_tokens=0, batches=())
    decode = replace(none, decode_tokens=options.decode_tokens, vs=rival)
    return [
        options,
        replace(none, continuous=PLACES, plan=one),
        replace(decode, contexts=(LONG_CONTEXT,), kv_dtypes=("bf16", "int8")),
        replace(decode, beside_busy=True),
        replace(none, weights_dtypes=dtypes, starts=True, vs=rival),
    ]


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

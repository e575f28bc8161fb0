"""The benchmark harness: one run over engines, weight formats and workloads, in turn, beside the machine's limits."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echoc.bench.engines import PEER_NAMES, Model, Setting, make_engine, open_model, read_manifest
from echoc.bench.floors import WEIGHT_BITS, ModelShape, floor_of, shape_of, shape_of_manifest
from echoc.bench.gpu import GpuReport, run_gpu_benchmark
from echoc.bench.machine import available_cpus, describe_machine, describe_versions, memory_bytes
from echoc.bench.probes import Limits, Probes, cache_folder
from echoc.bench.process import EngineProcess, Reply
from echoc.bench.report import Ratio, Report, Result
from echoc.bench.sampling import Lane, Sample, SamplingPlan, by_round, least_disturbed, main_state, take_samples
from echoc.bench.stats import paired_ratios, summarise
from echoc.bench.workloads import Workload, make_workloads
from echoc.errors import EchoError
from echoc.runtime.manifest import GPUS

SMALLEST_READ = 64 << 20  # a read probe below this would measure caches


@dataclass(frozen=True)
class Progress:
    """What a run tells while it goes on: a step's text, and how many of how many steps are done."""

    text: str
    done: int
    total: int


@dataclass(frozen=True)
class BenchOptions:
    """A run.

    `model`: artifact, checkpoint folder or shape preset. `checkpoint`: the folder behind an artifact, for peers.
    `weights_dtypes`: formats to time, each against the peers' nearest; none means an artifact's own, or bf16.
    `prefill`: prompt lengths; `prompts`: how many are given at once. `decode_tokens`, `contexts`, `batches`: decode
    steps after each context, alone and for each batch size; `mixed`: the least and the longest context of a batch
    whose sequences differ, echoc's alone. `vs`: peers. `peer_pythons`: interpreter by peer.
    `work`: folder for converted models.
    """

    model: str
    checkpoint: str | None = None
    weights_dtypes: Sequence[str] = ()
    threads: int = field(default_factory=available_cpus)
    prefill: Sequence[int] = (512,)
    prompts: int = 1
    decode_tokens: int = 32
    contexts: Sequence[int] = (512,)
    mixed: tuple[int, int] | None = None
    batches: Sequence[int] = (8,)
    vs: Sequence[str] = ()
    peer_pythons: Mapping[str, str] = field(default_factory=dict)
    own: bool = True
    deterministic: bool = False
    seed: int = 0
    work: Path = field(default_factory=lambda: cache_folder() / "models")
    plan: SamplingPlan = field(default_factory=SamplingPlan)
    timeout: float = 900.0

    def check(self) -> None:
        """Refuses what can't be run, before anything is built."""
        for name in self.vs:
            if name not in PEER_NAMES:
                raise EchoError(f"unknown peer {name!r}: wanted one of {', '.join(PEER_NAMES)}")
        for dtype in self.weights_dtypes:
            if dtype not in WEIGHT_BITS:
                raise EchoError(f"unknown weights dtype {dtype!r}: wanted one of {', '.join(WEIGHT_BITS)}")
        if self.vs and self.mixed:
            raise EchoError("peers are timed at equal contexts: leave out --mixed, or --vs")
        if not self.own and not self.vs:
            raise EchoError("nothing to run: echoc itself is switched off and no peer is named")
        if self.prompts > 1 and self.vs:
            raise EchoError(
                f"{self.prompts} prompts at once: peers are given one at a time; leave out --vs or --prompts"
            )
        if not 1 <= self.threads <= available_cpus():
            raise EchoError(f"{self.threads} threads: this process may use 1 to {available_cpus()} CPUs")
        if self.plan.rounds < 1 or self.plan.max_rounds < self.plan.rounds:
            raise EchoError(f"{self.plan.rounds} rounds, at most {self.plan.max_rounds}: wanted 1 <= rounds <= most")


def run_benchmark(
    options: BenchOptions, on_progress: Callable[[Progress], None] = lambda _p: None
) -> Report | GpuReport:
    """Runs everything the options name and returns the report; engines are child processes, ended in any case."""
    options.check()
    workloads = make_workloads(
        options.prefill, options.decode_tokens, options.contexts, options.batches, options.prompts, options.mixed
    )
    model = open_model(options.model, options.checkpoint, options.work)
    manifest = read_manifest(model.artifact) if model.artifact is not None else {}
    if manifest.get("target", {}).get("device") in GPUS:
        return _run_gpu(options, workloads, model, manifest, on_progress)
    probes = Probes(options.threads)
    shape = _shape(model)
    report = Report(
        command=list(sys.argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine().as_dict(),
        versions=describe_versions(),
        model={"name": model.name, "vocab_size": model.vocab_size, "shape": shape.as_dict()},
        threads=options.threads,
        max_lost=options.plan.max_lost,
    )
    dtypes = choose_dtypes(options, model)
    total = len(dtypes) * len(workloads)
    for index, dtype in enumerate(dtypes):
        ticker = _Ticker(on_progress, index * len(workloads), total)
        _run_dtype(options, workloads, probes, model, shape, dtype, report, ticker)
    return report


def _run_gpu(
    options: BenchOptions,
    workloads: Sequence[Workload],
    model: Model,
    manifest: dict[str, Any],
    on_progress: Callable[[Progress], None],
) -> GpuReport:
    if options.vs or not options.own:
        raise EchoError(f"{model.artifact} is for a GPU, where no peer is timed: leave out --vs and --no-own")
    (dtype,) = choose_dtypes(options, model)
    setting = Setting(dtype, 1, options.seed, options.work, options.peer_pythons, options.deterministic)
    total = 3 + len(workloads) * (1 + options.plan.rounds)
    done = itertools.count()

    def tell(text: str) -> None:
        on_progress(Progress(text, next(done), total))

    rounds, timeout = options.plan.rounds, options.timeout
    return run_gpu_benchmark(model, manifest, _shape(model), setting, workloads, rounds, timeout, tell)


def choose_dtypes(options: BenchOptions, model: Model) -> Sequence[str]:
    """The weight formats of a run; an artifact has one and cannot be timed as another."""
    if model.weights_dtype is None:
        return options.weights_dtypes or ("bf16",)
    if options.weights_dtypes and list(options.weights_dtypes) != [model.weights_dtype]:
        asked = ", ".join(options.weights_dtypes)
        raise EchoError(
            f"{model.artifact} holds {model.weights_dtype} weights, but {asked} is asked for: "
            "leave --weights-dtype out, or pass the checkpoint folder instead of the artifact"
        )
    return (model.weights_dtype,)


class _Ticker:
    """Progress of one weight format within the whole run."""

    def __init__(self, report: Callable[[Progress], None], done: int, total: int) -> None:
        self.report, self.done, self.total = report, done, total

    def say(self, text: str) -> None:
        self.report(Progress(text, self.done, self.total))

    def step(self) -> None:
        self.done += 1
        self.say("")


def _run_dtype(
    options: BenchOptions,
    workloads: Sequence[Workload],
    probes: Probes,
    model: Model,
    shape: ModelShape,
    dtype: str,
    report: Report,
    ticker: _Ticker,
) -> None:
    setting = Setting(
        dtype,
        options.threads,
        options.seed,
        options.work,
        options.peer_pythons,
        options.deterministic,
        ticker.say,
    )
    names = [*(["echoc"] if options.own else []), *options.vs]
    specs = [make_engine(name, model, setting) for name in names]
    ticker.say("measuring the machine's limits")
    read_bytes = min(max(int(shape.weight_bytes(dtype)), SMALLEST_READ), memory_bytes() // 4)
    measured = [_measure_limits(probes, read_bytes, dtype, report)]
    first = len(report.results)
    with contextlib.ExitStack() as stack:
        engines: dict[str, EngineProcess] = {}
        for spec in specs:
            ticker.say(f"loading {spec.name} {dtype}")
            engines[spec.name] = stack.enter_context(EngineProcess(spec, options.timeout))
            engine = engines[spec.name]
            loaded = {"engine": spec.name, "weights_dtype": dtype, "load_seconds": engine.load_seconds}
            report.engines.append(loaded | engine.description)
        for workload in workloads:
            _run_workload(options, workload, engines, probes, shape, dtype, measured[0][1], report, ticker)
            ticker.step()
    measured.append(_measure_limits(probes, read_bytes, dtype, report))
    _settle_floors(report, first, measured, shape)


def _run_workload(
    options: BenchOptions,
    workload: Workload,
    engines: Mapping[str, EngineProcess],
    probes: Probes,
    shape: ModelShape,
    dtype: str,
    limits: Limits,
    report: Report,
    ticker: _Ticker,
) -> None:
    op, arguments = workload.request()
    resident: dict[str, int] = {}

    def lane(name: str, engine: EngineProcess) -> Lane:
        def run() -> Reply:
            reply = engine.request(op, **arguments)
            resident[name] = reply.resident_bytes
            return reply

        return Lane(name, run)

    lanes = [lane(name, engine) for name, engine in engines.items()]
    for warm in lanes:
        ticker.say(f"{workload.label} {dtype}: warming up {warm.name}")
        warm.run()

    def show(name: str, sample: Sample) -> None:
        ticker.say(f"{workload.label} {dtype}: {name} round {sample.round + 1}, {sample.discarded or sample.state}")

    taken = take_samples(lanes, options.plan, probes.wait_until_free, options.threads, available_cpus(), show)
    floor = floor_of(workload, shape, dtype, limits)
    for name, samples in taken.items():
        state = main_state(samples)
        clean = [sample.seconds for sample in samples if sample.discarded is None and sample.state == state]
        report.results.append(
            Result(
                engine=name,
                weights_dtype=dtype,
                workload=workload,
                state=state,
                seconds=summarise(clean) if clean else None,
                disturbed=least_disturbed(samples),
                floor=floor,
                samples=samples,
                resident_bytes=resident[name],
            )
        )
    if "echoc" in taken:
        report.ratios += _ratios(taken, dtype, workload)


def _ratios(taken: Mapping[str, Sequence[Sample]], dtype: str, workload: Workload) -> list[Ratio]:
    ratios = []
    rounds = max(len(samples) for samples in taken.values())
    state = main_state(taken["echoc"])
    for name, samples in taken.items():
        values = paired_ratios(by_round(taken["echoc"], state, rounds), by_round(samples, state, rounds))
        if name != "echoc" and values and state is not None:
            ratios.append(Ratio(name, dtype, workload, state, summarise(values)))
    return ratios


def _measure_limits(probes: Probes, read_bytes: int, dtype: str, report: Report) -> tuple[str, Limits]:
    """Limits with the core state around them; both go into the report."""
    before = probes.wait_until_free(2.0)
    limits = probes.limits(read_bytes)
    after = probes.core_state()
    states = {before.state, after.state}
    state = next((name for name in ("contended", "shared-core") if name in states), "free")
    report.limits.append({"weights_dtype": dtype, "core_state": state, **limits.as_dict()})
    return state, limits


def _settle_floors(report: Report, first: int, measured: Sequence[tuple[str, Limits]], shape: ModelShape) -> None:
    """Gives each result of this format the floor of the best limits seen, in its own core state where there are any."""
    for index in range(first, len(report.results)):
        result = report.results[index]
        same = [limits for state, limits in measured if state == result.state]
        limits = best_limits(same or [limits for _, limits in measured])
        floor = floor_of(result.workload, shape, result.weights_dtype, limits)
        report.results[index] = dataclasses.replace(result, floor=floor)


def best_limits(measured: Sequence[Limits]) -> Limits:
    """The highest of each rate: a limit is what the machine can do, and disturbance only lowers a reading."""
    first = measured[0]
    rates = {
        name: max(getattr(limits, name) for limits in measured)
        for name in first.as_dict()
        if name not in ("threads", "read_bytes")
    }
    return dataclasses.replace(first, **rates)


def _shape(model: Model) -> ModelShape:
    if model.checkpoint is not None:
        return shape_of(model.checkpoint)
    if model.artifact is None:
        raise EchoError(f"model {model.name} has neither a checkpoint nor an artifact")
    return shape_of_manifest(read_manifest(model.artifact))

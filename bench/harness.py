"""The benchmark harness: one run over engines, weight formats and workloads, in turn, beside the machine's limits."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echoc.bench.cores import Cores
from echoc.bench.earlier import continued
from echoc.bench.engines import PEER_NAMES, Model, Setting, make_engine, open_model, read_manifest
from echoc.bench.floors import (
    KV_BYTES,
    OWN_NARROW_KV,
    WEIGHT_BITS,
    ModelShape,
    lightest_kv,
    shape_of,
    shape_of_manifest,
)
from echoc.bench.gpu import GpuReport, run_gpu_benchmark
from echoc.bench.machine import available_cpus, describe_machine, describe_versions, memory_bytes
from echoc.bench.probes import Probes, cache_folder
from echoc.bench.process import EngineError, EngineProcess, EngineSpec, Reply, UnsupportedError
from echoc.bench.report import BESIDE, Report, Result, Row, format_names
from echoc.bench.sampling import Lane, Sample, SamplingPlan, lanes_lacking, take_samples
from echoc.bench.sharing import BusyProcess
from echoc.bench.starts import measure_start
from echoc.bench.workloads import Workload, make_workloads
from echoc.errors import EchoError
from echoc.runtime.manifest import GPUS

WARM_REQUESTS = 3  # of a queue
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
    whose sequences differ, echoc's alone. `continuous`: sequences at once, fed from a queue of requests.
    `kv_dtypes`: formats of keys and values to time, None for each engine's own. `beside_busy`: each workload also with
    a busy process on one core. `starts`: fresh processes, their time to a first token and their memory.
    `vs`: peers. `peer_pythons`: interpreter by peer. `work`: folder for converted models.
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
    continuous: int = 0
    kv_dtypes: Sequence[str | None] = (None,)
    beside_busy: bool = False
    starts: bool = False
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
        for kv_dtype in self.kv_dtypes:
            if kv_dtype is not None and kv_dtype not in KV_BYTES:
                raise EchoError(f"unknown KV cache dtype {kv_dtype!r}: wanted one of {', '.join(KV_BYTES)}")
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
    options: BenchOptions,
    on_progress: Callable[[Progress], None] = lambda _p: None,
    on_change: Callable[[Report], None] = lambda _r: None,
    earlier: tuple[Path, Sequence[Report]] | None = None,
) -> Report | GpuReport:
    """Runs everything the options name and returns the report; engines are child processes, ended in any case.

    `on_change`, `earlier`: as for `run_stages`, on a CPU.
    """
    options.check()
    model = open_model(options.model, options.checkpoint, options.work)
    manifest = read_manifest(model.artifact) if model.artifact is not None else {}
    if manifest.get("target", {}).get("device") in GPUS:
        return _run_gpu(options, _workloads(options), model, manifest, on_progress)
    return run_stages([options], on_progress, on_change, earlier)


def run_stages(
    stages: Sequence[BenchOptions],
    on_progress: Callable[[Progress], None] = lambda _p: None,
    on_change: Callable[[Report], None] = lambda _r: None,
    earlier: tuple[Path, Sequence[Report]] | None = None,
) -> Report:
    """Runs stages of one model on a CPU into one report; `on_change` is given what there is after each workload.

    `earlier`: a file and the reports in it; where one is of this model, the run goes on with it and measures what it
    lacks. A peer that fails in a stage ends this stage alone, and only where there are others: the report says so.
    """
    for stage in stages:
        stage.check()
    options = stages[0]
    model = open_model(options.model, options.checkpoint, options.work)
    probes, shape = Probes(options.threads), _shape(model)
    report = Report(
        command=list(sys.argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine().as_dict(),
        versions=describe_versions(),
        model={"name": model.name, "vocab_size": model.vocab_size, "shape": shape.as_dict()},
        threads=options.threads,
        max_lost=options.plan.max_lost,
    )
    if earlier is not None:
        report = continued(report, earlier[1], earlier[0])
    ticker = _Ticker(on_progress, 0, len(stages))
    cores = Cores(probes, options.plan, ticker.say)
    for stage in stages:
        run = _Run(stage, cores, model, shape, report, ticker, on_change)
        try:
            run.all()
        except EngineError as error:
            if len(stages) == 1:
                raise
            report.note_unable("a stage", ", ".join(w.label for w in _workloads(stage)) or "starts", str(error))
        ticker.step()
        on_change(report)
    return report


def _workloads(options: BenchOptions) -> list[Workload]:
    if options.starts and not (options.prefill or options.decode_tokens or options.continuous):
        return []
    return make_workloads(
        options.prefill,
        options.decode_tokens,
        options.contexts,
        options.batches,
        options.prompts,
        options.mixed,
        options.continuous,
        options.seed,
    )


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
    """Progress of one stage within the whole run."""

    def __init__(self, report: Callable[[Progress], None], done: int, total: int) -> None:
        self.report, self.done, self.total = report, done, total

    def say(self, text: str) -> None:
        self.report(Progress(text, self.done, self.total))

    def step(self) -> None:
        self.done += 1
        self.say("")


@dataclass
class _Run:
    """One stage: its options and what they are run with."""

    options: BenchOptions
    cores: Cores
    model: Model
    shape: ModelShape
    report: Report
    ticker: _Ticker
    on_change: Callable[[Report], None]

    def all(self) -> None:
        """Every format of weights and of keys and values; what is continuous has engines of its own."""
        workloads = _workloads(self.options)
        groups = [[w for w in workloads if w.kind != "continuous"], [w for w in workloads if w.kind == "continuous"]]
        for dtype, kv_dtype in itertools.product(choose_dtypes(self.options, self.model), self.options.kv_dtypes):
            for group in filter(None, groups):
                self._format(group, dtype, kv_dtype)
            if self.options.starts:
                self._starts(dtype, kv_dtype)

    def specs(self, dtype: str, kv_dtype: str | None, continuous: bool, what: str) -> list[EngineSpec]:
        """The engines that can do it, converted and compiled; the report names the others."""
        options = self.options
        setting = Setting(
            dtype,
            options.threads,
            options.seed,
            options.work,
            options.peer_pythons,
            options.deterministic,
            kv_dtype,
            continuous,
            options.beside_busy,
            self.ticker.say,
        )
        specs = []
        for name in [*(["echoc"] if options.own else []), *options.vs]:
            try:
                specs.append(make_engine(name, self.model, setting))
            except UnsupportedError as error:
                self.report.note_unable(name, f"{what}, {format_names(dtype, kv_dtype)}", str(error))
        if not specs:
            raise EngineError(f"no engine of those named can do {what} with {format_names(dtype, kv_dtype)}")
        return specs

    def _format(self, workloads: Sequence[Workload], dtype: str, kv_dtype: str | None) -> None:
        what = ", ".join(workload.label for workload in workloads)
        specs = self.specs(dtype, kv_dtype, workloads[0].kind == "continuous", what)
        names = [spec.name for spec in specs]
        workloads = [workload for workload in workloads if self._lacks(names, self._row(workload, dtype, kv_dtype))]
        if not workloads:
            return
        self._limits(dtype)
        with contextlib.ExitStack() as stack:
            engines: dict[str, EngineProcess] = {}
            for spec in specs:
                self.ticker.say(f"loading {spec.name} {dtype}")
                try:
                    engine = stack.enter_context(EngineProcess(spec, self.options.timeout))
                except EngineError as error:
                    if spec.name == "echoc" or len(specs) == 1:
                        raise
                    self.report.note_unable(spec.name, f"{what}, {format_names(dtype, kv_dtype)}", str(error))
                    continue
                engines[spec.name] = engine
                loaded = {"engine": spec.name, "weights_dtype": dtype, "load_seconds": engine.load_seconds}
                self.report.engines.append(loaded | engine.description)
            for workload in workloads:
                self._all_that_can(self._row(workload, dtype, kv_dtype), engines)
                self.on_change(self.report)
        self._limits(dtype)

    def _limits(self, dtype: str) -> None:
        """Limits of the machine over as many bytes as the weights have, with the state of the cores around them."""
        self.ticker.say("measuring the machine's limits")
        read_bytes = min(max(int(self.shape.weight_bytes(dtype)), SMALLEST_READ), memory_bytes() // 4)
        before = self.cores.ready(2.0, self.options.plan.wait_seconds)
        limits = self.cores.probes.limits(read_bytes)
        after = self.cores.probes.core_state()
        state = before.state if before.state == after.state else "changed"
        if "contended" in (before.state, after.state):
            state = "contended"
        line_ns = max(before.line_ns, after.line_ns)
        self.report.limits.append({"weights_dtype": dtype, "core_state": state, "line_ns": line_ns, **limits.as_dict()})

    def _row(self, workload: Workload, dtype: str, kv_dtype: str | None) -> Row:
        return Row(workload, dtype, kv_dtype, self.options.beside_busy)

    def _lacks(self, names: Sequence[str], row: Row) -> bool:
        """Whether a row needs samples still, after what the report holds."""
        counts = (0, 1) if self.options.beside_busy else (0,)
        taken = {f"{name}{beside}": self._taken(name, row, beside) for beside in counts for name in names}
        return bool(lanes_lacking(taken, self.options.plan.rounds, self.cores.wanted()))

    def _taken(self, name: str, row: Row, beside: int) -> list[Sample]:
        found = self.report.find(name, row, beside)
        return found.samples if found else []

    def _lanes(self, workload: Workload, engines: Mapping[str, EngineProcess], resident: dict[str, int]) -> list[Lane]:
        op, arguments = workload.request()

        def lane(name: str, engine: EngineProcess, beside: int) -> Lane:
            def run() -> Reply:
                with BusyProcess() if beside else contextlib.nullcontext():
                    reply = engine.request(op, **arguments)
                resident[name] = reply.resident_bytes
                return reply

            return Lane(name + BESIDE * bool(beside), run, name, beside)

        counts = (0, 1) if self.options.beside_busy else (0,)
        return [lane(name, engine, beside) for beside in counts for name, engine in engines.items()]

    def _warm_up(self, engine: EngineProcess, workload: Workload) -> None:
        """The workload once, or a few requests of a queue: enough to compile and allocate what comes late."""
        operation, arguments = workload.request()
        if workload.requests:
            longest = max(workload.requests, key=sum)
            arguments = arguments | {"requests": [list(longest), *arguments["requests"][:WARM_REQUESTS]]}
        engine.request(operation, **arguments)

    def _all_that_can(self, row: Row, engines: dict[str, EngineProcess]) -> None:
        """One workload; a peer that fails is ended, and the others go on."""
        while True:
            try:
                return self._workload(row, engines)
            except EngineError as error:
                if error.engine not in engines or error.engine == "echoc" or len(engines) == 1:
                    raise
                self.report.note_unable(error.engine, f"{row.workload.label}, {row.formats}", str(error))
                engines.pop(error.engine).close()

    def _workload(self, row: Row, engines: Mapping[str, EngineProcess]) -> None:
        workload, names, resident = row.workload, row.formats, dict.fromkeys(engines, 0)
        lanes = self._lanes(workload, engines, resident)
        for warm in lanes:
            if not warm.beside:
                self.ticker.say(f"{workload.label} {names}: warming up {warm.name}")
                self._warm_up(engines[warm.name], workload)

        def show(name: str, sample: Sample) -> None:
            said = sample.discarded or sample.state
            self.ticker.say(f"{workload.label} {names}: {name} round {sample.round + 1}, {said}")

        taken: dict[str, list[Sample]] = {}
        for lane in lanes:
            result = self.report.find(lane.engine, row, lane.beside)
            if result is None:
                result = Result(lane.engine, row, [], beside=lane.beside)
                self.report.results.append(result)
            taken[lane.name] = result.samples
        plan, threads = self.options.plan, self.options.threads
        take_samples(lanes, plan, self.cores.ready, threads, available_cpus(), show, taken, self.cores.wanted)
        for lane in lanes:
            result = self.report.find(lane.engine, row, lane.beside)
            if result is not None and resident[lane.engine]:
                result.resident_bytes = resident[lane.engine]

    def _starts(self, dtype: str, kv_dtype: str | None) -> None:
        done = {(start.engine, start.weights_dtype) for start in self.report.starts}
        for spec in self.specs(dtype, kv_dtype, False, "a fresh process"):
            if (spec.name, dtype) not in done:
                chosen = lightest_kv(dtype) if spec.name in OWN_NARROW_KV else None
                shape, plan = self.shape.with_kv(kv_dtype or chosen), self.options.plan
                start = measure_start(spec, shape, plan.rounds, self.options.timeout, self.ticker.say)
                self.report.starts.append(start)
                self.on_change(self.report)


def _shape(model: Model) -> ModelShape:
    if model.checkpoint is not None:
        return shape_of(model.checkpoint)
    if model.artifact is None:
        raise EchoError(f"model {model.name} has neither a checkpoint nor an artifact")
    return shape_of_manifest(read_manifest(model.artifact))

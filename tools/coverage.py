"""Which causal language models of transformers come through: a table, and the reason for each that does not.

    python tools/coverage.py --out build/coverage            # all of them, one process each; finished ones are kept
    python tools/coverage.py --out build/coverage --only llama,gpt2 --again    # what was traced before is used again
    python tools/coverage.py --out build/coverage --only llama,gpt2 --retrace
    python tools/coverage.py --out build/coverage --report   # prints what is there
    python tools/coverage.py --out build/coverage --table docs/models.md

Stages: `config` (a tiny model builds), `eager` (transformers runs it), `export` (it is traced with a symbolic length),
`traced` (the graph gives transformers' logits at two other lengths, within 1e-4 of the largest logit), `stateful` (it
becomes a step program which the CPU can be given kernels for, and which gives transformers' logits on the reference
device, in ragged chunks), `compile` (an f32 artifact is built), `match` (the artifact gives transformers' logits for a
whole prompt, and for the same tokens in chunks and one by one). `--through` says how far to go.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import multiprocessing
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import causal_lm_zoo as zoo
import numpy as np
import torch

STAGES = ("config", "eager", "export", "traced", "stateful", "compile", "match")
LENGTHS = (7, 37)
TOLERANCE = 1e-4
CONTEXT = 64


@dataclasses.dataclass
class Trace:
    """What the later stages need of a traced model: the prompt program as text, values by name, one prompt's logits."""

    program: str
    weights: dict[str, np.ndarray]
    tokens: np.ndarray  # i64 [S]
    logits: np.ndarray  # f32 [S, V], of transformers

    def save(self, path: Path) -> None:
        values = {f"weight:{name}": value for name, value in self.weights.items()}
        np.savez(path, program=np.array(self.program), tokens=self.tokens, logits=self.logits, **values)

    @staticmethod
    def load(path: Path) -> Trace:
        with np.load(path) as file:
            weights = {n.removeprefix("weight:"): file[n] for n in file.files if n.startswith("weight:")}
            return Trace(str(file["program"]), weights, file["tokens"], file["logits"])

    def difference(self, logits: np.ndarray) -> float:
        return float(np.abs(logits - self.logits).max() / np.abs(self.logits).max())


def examine(model_type: str, through: str, path: Path, result: dict[str, Any]) -> None:
    """Takes one model through the stages, writing into `result` as it goes; raises at the stage that fails."""
    started = time.monotonic()
    last = STAGES.index(through)
    kept = path.with_suffix(".npz")
    if result["stage"] not in STAGES[STAGES.index("traced") :] or not kept.is_file():
        trace_model(model_type, result, kept)
    result["stage"] = "traced"
    trace = Trace.load(kept)
    if last >= STAGES.index("stateful"):
        result["stepped"] = _stepped(trace)
        _check("the step program", result["stepped"])
        result["stage"] = "stateful"
    if last >= STAGES.index("compile"):
        with tempfile.TemporaryDirectory() as folder:
            artifact = _compile(trace, Path(folder) / "model.echo")
            result["stage"] = "compile"
            if last >= STAGES.index("match"):
                result["served"] = _served(artifact, trace)
                _check("the artifact", max(result["served"].values()))
                result["stage"] = "match"
    result["seconds"] = round(time.monotonic() - started, 1)
    result["reason"] = ""


def trace_model(model_type: str, result: dict[str, Any], kept: Path) -> None:
    """The stages before the compiler proper; what was traced goes to the file `kept`."""
    result["stage"] = ""
    model = zoo.build_eager(model_type)
    result["stage"] = "config"
    expected = {}
    for length in LENGTHS:
        tokens = zoo.sample_tokens(model.config, length, length)
        expected[length] = (tokens, zoo.eager_logits(model, tokens))
    if not all(torch.isfinite(logits).all() for _, logits in expected.values()):
        raise ValueError("eager logits are not finite")
    result["stage"] = "eager"
    result["kind"] = zoo.kind_of(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        exported = _export(folder)
        result["stage"] = "export"
        result["ops"] = dict(collections.Counter(_target(node) for node in exported.program.graph.nodes))
        result["ops"].pop("", None)
        result["error"] = {length: _difference(exported, *pair) for length, pair in expected.items()}
        _check("the traced graph", max(result["error"].values()))
        result["stage"] = "traced"
        _keep(exported, *expected[LENGTHS[-1]], kept)


def _keep(exported: Any, tokens: torch.Tensor, logits: torch.Tensor, kept: Path) -> None:
    from echoc.compiler.importers.huggingface.convert import prompt_program
    from echoc.compiler.ir.text import show

    program = prompt_program(exported, min(CONTEXT, exported.max_tokens))
    weights = {name: reference.read() for name, reference in exported.parameters.items()} | exported.buffers
    Trace(show(program), weights, tokens[0].numpy(), logits[0].numpy()).save(kept)


def _check(what: str, worst: float) -> None:
    if not worst <= TOLERANCE:
        raise ValueError(f"{what} differs from transformers by {worst:.1e} of the largest logit")


def _stepped(trace: Trace) -> float:
    """The difference of the step program on the reference device, over chunks of several lengths."""
    from echoc.compiler.ir import DType
    from echoc.compiler.ir.interpret import run_rule
    from echoc.compiler.ir.text import parse
    from echoc.compiler.pipeline import language_model_passes, run_passes
    from echoc.compiler.targets.cpu.lower import lower
    from echoc.compiler.weights import Weights

    program = run_passes(parse(trace.program), language_model_passes(DType.F32))
    lower(program, "f32", 32)
    skin = program.skin
    weights = Weights(skin, trace.weights.__getitem__, {})
    table = np.random.default_rng(0).permutation(16).astype(np.int32)[None]
    states: dict[str, Any] = {s.name: np.full((16, 4, *s.type.shape), np.nan, np.float32) for s in skin.states}
    logits = []
    for begin, end in itertools.pairwise((0, 9, 10, 11, 20, len(trace.tokens))):
        places = np.arange(end - begin, dtype=np.int32)
        ports = {
            "tokens": trace.tokens[begin:end], "positions": begin + places, "sequences": 0 * places, "rows": places,
            "block_table": table,
        }  # fmt: skip
        outputs, states = run_rule(skin, skin.rule("step"), ports, weights.value, states)
        logits.append(outputs["logits"])
    return trace.difference(np.concatenate(logits))


def _compile(trace: Trace, output: Path) -> Path:
    from echoc.compiler.api import compile_program
    from echoc.compiler.ir import DType
    from echoc.compiler.ir.text import parse
    from echoc.compiler.pipeline import language_model_passes, program_passes, run_passes

    passes = language_model_passes(DType.F32)
    step = run_passes(parse(trace.program), passes[: len(passes) - len(program_passes())])
    compile_program(step, trace.weights, weights_dtype="f32", output=output)
    return output


def _served(artifact: Path, trace: Trace) -> dict[str, float]:
    """The difference for each way of cutting the prompt into steps: whole, in two chunks, token by token."""
    import echoc

    program = echoc.load(artifact, num_threads=1, num_pages=16)
    prompt = trace.tokens
    cuts = {"whole": [len(prompt)], "chunks": [11, len(prompt) - 11], "single": [1] * len(prompt)}
    differences = {}
    for name, sizes in cuts.items():
        with program.create() as instance:
            ends = np.cumsum(sizes)
            rows = [instance.step(prompt[end - size : end], rows="all") for size, end in zip(sizes, ends, strict=True)]
        differences[name] = trace.difference(np.concatenate(rows))
    return differences


def _export(folder: str) -> Any:
    from echoc.compiler.importers.huggingface import export_causal_lm

    return export_causal_lm(folder)


def _target(node: Any) -> str:
    return str(node.target) if node.op == "call_function" else ""


def _difference(exported: Any, tokens: torch.Tensor, expected: torch.Tensor) -> float:
    values = []
    for binding in exported.bindings:
        if binding.kind == "parameter":
            values.append(torch.from_numpy(exported.parameters[binding.name].read()))
        elif binding.kind == "buffer":
            values.append(torch.from_numpy(exported.buffers[binding.name]))
        else:
            values.append(tokens if binding.name == "input_ids" else torch.arange(tokens.shape[1])[None])
    with torch.no_grad():
        logits = torch.fx.Interpreter(exported.program.graph_module).run(*values)[0]
    return float((logits - expected).abs().max() / expected.abs().max())


class _Result(dict[str, Any]):
    """What is known of one model so far; each stage that is reached goes to the file at once."""

    def __init__(self, path: Path, model_type: str) -> None:
        super().__init__(model_type=model_type, stage="", reason="")
        self.path = path
        if path.is_file():
            self.update(json.loads(path.read_text()))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key in ("stage", "reason", "kind"):
            self.path.write_text(json.dumps(self))


def _work(model_type: str, through: str, path: Path) -> None:
    result = _Result(path, model_type)
    try:
        examine(model_type, through, path, result)
    except BaseException as error:  # whatever foreign code raises is this model's result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result["reason"] = f"{type(error).__name__}: {' '.join(lines[:6])[:700]}"


def run_isolated(model_type: str, through: str, path: Path, timeout: float) -> dict[str, Any]:
    """The result of one model, from a process of its own; a crash or a hang becomes its result."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(model_type, through, path))
    process.start()
    process.join(timeout)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    if late or process.exitcode:
        known = json.loads(path.read_text()) if path.is_file() else {"model_type": model_type, "stage": ""}
        known["reason"] = f"took more than {timeout:.0f} s" if late else f"the process died ({process.exitcode})"
        path.write_text(json.dumps(known))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def census(results: list[dict[str, Any]]) -> str:
    """Every operator with the number of models it occurs in."""
    counts: collections.Counter[str] = collections.Counter()
    for result in results:
        counts.update(result.get("ops", {}).keys())
    return "\n".join(f"{count:4} {name}" for name, count in counts.most_common())


def report(results: list[dict[str, Any]]) -> str:
    """One line per model, then counts by kind and stage."""
    lines = [f"{r['model_type']:32} {r.get('kind', ''):36} {r['stage']:8} {r['reason'][:300]}" for r in results]
    table: dict[str, collections.Counter[str]] = {}
    for r in results:
        table.setdefault(r.get("kind", "unknown").split(":")[0], collections.Counter())[r["stage"]] += 1
    lines += [f"{kind:20} {sum(c.values()):4} {dict(c)}" for kind, c in sorted(table.items())]
    return "\n".join(lines)


KINDS = {
    "plain": "attention over all tokens or a window of them",
    "moe": "the same with a mixture of experts",
    "latent": "attention on a compressed latent",
    "recurrent": "recurrences or convolutions, with or without attention",
    "not decoder-only": "encoders, cross-attention, other modalities: outside the count of decoder-only models",
    "unknown": "no tiny model could be built or run",
}
MEANINGS = {
    "match": "the compiled artifact gives transformers' logits: whole prompt, in chunks, token by token",
    "compile": "kernels are built and packed; the artifact's logits differ or it does not run",
    "stateful": "the step program gives transformers' logits on the reference device; not yet compiled",
    "traced": "the imported graph gives transformers' logits; refused after that for the reason given, or not tried",
    "export": "traced, but with other logits than transformers",
    "eager": "transformers runs it; it cannot be traced for every length",
    "config": "a tiny model is built; transformers cannot run it",
    "none": "no tiny model can be built here",
}


def table(results: list[dict[str, Any]], command: str) -> str:
    """docs/models.md: counts by kind and stage, then one row per model."""
    import datetime
    import platform
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}
    for r in results:
        counts[_kind(r)][r["stage"] or "none"] += 1
    stages = [s for s in MEANINGS if any(c[s] for c in counts.values())]
    strict = [r for r in results if _kind(r) in ("plain", "moe", "latent", "recurrent")]
    done = collections.Counter(r["stage"] for r in strict)
    lines = [
        "# Models",
        "",
        f"{len(results)} of the {len(zoo.model_types())} entries of transformers' causal-LM table, each built tiny",
        "from a valid configuration with seeded random weights and taken through the compiler in f32. A stage counts",
        "when every logit is within",
        f"{TOLERANCE:g} of the largest one of transformers' own f32 run.",
        "",
        f"Measured on {day}: {versions}, Python {platform.python_version()}, {platform.machine()}.",
        "",
        f"    {command}",
        "",
        f"Of the {len(strict)} decoder-only models, {done['match']} compile and match.",
        f"{done['stateful']} more match as step programs on the reference device.",
        "",
        "| kind | what it is | models | " + " | ".join(stages) + " |",
        "|---|---|---:|" + "---:|" * len(stages),
    ]
    for kind, c in counts.items():
        cells = " | ".join(str(c[s] or "") for s in stages)
        lines.append(f"| {kind} | {KINDS[kind]} | {sum(c.values())} | {cells} |")
    lines += ["", *(f"- **{s}**: {MEANINGS[s]}." for s in stages), ""]
    lines += ["| model | kind | stage | error | what stopped it |", "|---|---|---|---:|---|"]
    for r in sorted(results, key=lambda r: r["model_type"]):
        reason = _ADVICE.sub("", r["reason"]).replace("|", "\\|").replace("\n", " ")[:300]
        kind = r.get("kind", "unknown")
        lines.append(f"| {r['model_type']} | {kind} | {r['stage'] or 'none'} | {_worst(r)} | {reason} |")
    return "\n".join(lines) + "\n"


_ADVICE = re.compile(
    r"(For more information|For extended logs|Suggested fixes|consider using data-dep).*|- Not all values of "
)


def _kind(result: dict[str, Any]) -> str:
    return str(result.get("kind", "unknown")).split(":")[0]


def _worst(result: dict[str, Any]) -> str:
    """The largest difference at the last stage that measured one."""
    for found in (result.get("served"), result.get("stepped"), result.get("error")):
        if found:
            return f"{max(found.values()) if isinstance(found, dict) else found:.1e}"
    return ""


def _unfinished(result: dict[str, Any], through: str) -> bool:
    """Whether a model stopped only because no more was asked for."""
    return not result["reason"] and STAGES.index(result["stage"] or STAGES[0]) < STAGES.index(through)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/coverage"))
    parser.add_argument("--only", default="", help="comma-separated model types")
    parser.add_argument("--through", choices=STAGES, default=STAGES[-1], help="the last stage to reach")
    parser.add_argument("--again", action="store_true", help="redo finished models from their traces")
    parser.add_argument("--retrace", action="store_true", help="redo models from the start")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds per model")
    parser.add_argument("--table", type=Path, help="write the table of what is there, as Markdown, and stop")
    parser.add_argument("--report", action="store_true", help="print the table and stop")
    options = parser.parse_args()
    import transformers  # noqa: F401  (loaded once, before the processes fork)
    from transformers.utils import logging

    import echoc.compiler.importers.huggingface  # noqa: F401

    names = options.only.split(",") if options.only else zoo.model_types()
    if options.table:
        found = [json.loads(p.read_text()) for n in names if (p := options.out / f"{n}.json").is_file()]
        options.table.write_text(table(found, "python tools/coverage.py --out build/coverage"))
        return 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for index, name in enumerate(names):
        path = options.out / f"{name}.json"
        if options.retrace:
            path.unlink(missing_ok=True)
        known = json.loads(path.read_text()) if path.is_file() else None
        if options.report or (known and not options.again and not _unfinished(known, options.through)):
            results += [known] if known else []
            continue
        result = run_isolated(name, options.through, path, options.timeout)
        results.append(result)
        print(f"[{index + 1}/{len(names)}] {name:32} {result['stage']:8} {result['reason'][:200]}", flush=True)
    (options.out / "census.txt").write_text(census(results) + "\n")
    (options.out / "report.txt").write_text(report(results) + "\n")
    print(report(results) if options.report else report(results).rsplit("\n", 6)[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())

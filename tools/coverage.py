"""Which causal language models of transformers come through: a table, and the reason for each that does not.

    python tools/coverage.py --out build/coverage            # all of them, one process each; finished ones are kept
    python tools/coverage.py --out build/coverage --only llama,gpt2 --again
    python tools/coverage.py --out build/coverage --report   # prints the table of what is there

Stages: `config` (a tiny model builds), `eager` (transformers runs it), `export` (it is traced with a symbolic length),
`match` (the traced graph gives transformers' logits at two other lengths, within 1e-4 of the largest logit).
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import causal_lm_zoo as zoo
import torch

STAGES = ("config", "eager", "export", "match")
LENGTHS = (7, 37)
TOLERANCE = 1e-4


def examine(model_type: str, result: dict[str, Any]) -> None:
    """Takes one model through the stages, writing into `result` as it goes; raises at the stage that fails."""
    started = time.monotonic()
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
        result["seconds"] = round(time.monotonic() - started, 1)
        result["error"] = {length: _difference(exported, *pair) for length, pair in expected.items()}
    worst = max(result["error"].values())
    if not worst <= TOLERANCE:
        raise ValueError(f"the traced graph differs from transformers by {worst:.1e} of the largest logit")
    result["stage"] = "match"


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


def _work(model_type: str, path: Path) -> None:
    result: dict[str, Any] = {"model_type": model_type, "stage": "", "reason": ""}
    try:
        examine(model_type, result)
    except BaseException as error:  # whatever foreign code raises is this model's result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result["reason"] = f"{type(error).__name__}: {' '.join(lines[:6])[:700]}"
    path.write_text(json.dumps(result))


def run_isolated(model_type: str, path: Path, timeout: float) -> dict[str, Any]:
    """The result of one model, from a process of its own; a crash or a hang becomes its result."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(model_type, path))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    if not path.is_file():
        how = f"took more than {timeout:.0f} s" if process.exitcode == -9 else f"process died ({process.exitcode})"
        path.write_text(json.dumps({"model_type": model_type, "stage": "", "reason": how}))
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/coverage"))
    parser.add_argument("--only", default="", help="comma-separated model types")
    parser.add_argument("--again", action="store_true", help="redo finished models")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds per model")
    parser.add_argument("--report", action="store_true", help="print the table and stop")
    options = parser.parse_args()
    import transformers  # noqa: F401  (loaded once, before the processes fork)
    from transformers.utils import logging

    import echoc.compiler.importers.huggingface  # noqa: F401

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else zoo.model_types()
    results = []
    for index, name in enumerate(names):
        path = options.out / f"{name}.json"
        if options.again and not options.report:
            path.unlink(missing_ok=True)
        if path.is_file():
            results.append(json.loads(path.read_text()))
            continue
        if options.report:
            continue
        result = run_isolated(name, path, options.timeout)
        results.append(result)
        print(f"[{index + 1}/{len(names)}] {name:32} {result['stage']:8} {result['reason'][:200]}", flush=True)
    (options.out / "census.txt").write_text(census(results) + "\n")
    (options.out / "report.txt").write_text(report(results) + "\n")
    print(report(results) if options.report else report(results).rsplit("\n", 6)[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())

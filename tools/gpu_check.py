"""Runs an artifact on a GPU: what the device is, whether the logits are those of the CPU, and how fast steps are.

    python tools/gpu_check.py model.cuda.echo --cpu model.cpu.echo --json > check.json

Needs no compiler and none of its packages. Both artifacts must come from one checkpoint or seed; compile the CPU's for
a level that the machine has (`--target cpu:x86-64-v4`). Exits with 1 when the logits are not within the tolerance, when
the deterministic variant gives a sequence other bits in a batch than alone, or device and host choose other tokens.

    python tools/gpu_check.py --all FOLDER

checks everything in a folder: the cases that `tools/gpu_cases.py make FOLDER/cases` has made, and every NAME.gpu.echo,
with NAME.cpu.echo beside it where there is one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc.errors import EchoError
from echoc.runtime.devices.gpu import GpuDevice, open_driver
from echoc.runtime.llm import LLM
from echoc.runtime.program import Instance, Program
from echoc.runtime.sampling import SamplingParams

_FIRST_TOKEN = """
import json, sys, time
begin = time.perf_counter()
from echoc import LLM, SamplingParams
imported = time.perf_counter()
llm = LLM(sys.argv[1], max_num_seqs=1)
loaded = time.perf_counter()
token = llm.generate([json.loads(sys.argv[2])], SamplingParams(temperature=0, max_tokens=1))[0].outputs[0].token_ids
done = time.perf_counter()
parts = getattr(llm.model.program.device, "seconds", {})
print(json.dumps({"import": imported - begin, "load": loaded - imported, "token": done - loaded, "parts": parts}))
"""

Logits = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.all is not None:
        return check_all(options)
    try:
        report = check(options)
    except EchoError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    return 0 if _is_right(report) else 1


def _is_right(report: dict[str, Any]) -> bool:
    same = all(entry["same_tokens"] in (None, True) for entry in report["generate"])
    alone = not (report["deterministic"] or {}).get("differing_rows")
    return report.get("logits", {}).get("agree", True) and same and alone


def check_all(options: argparse.Namespace) -> int:
    """0 where everything in the folder is right, 1 where something is not, 2 where there is nothing to check."""
    folder: Path = options.all
    artifacts = sorted(folder.glob("*.gpu.echo"))
    cases = folder / "cases"
    if not artifacts and not cases.is_dir():
        print(f"gpu_check: {folder} holds no NAME.gpu.echo and no folder cases: nothing to check", file=sys.stderr)
        return 2
    bad = []
    if cases.is_dir():
        command = [sys.executable, str(Path(__file__).with_name("gpu_cases.py")), "run", str(cases)]
        bad += ["cases"] if subprocess.run(command, check=False).returncode else []
    for path in artifacts:
        cpu = path.with_name(path.name.replace(".gpu.echo", ".cpu.echo"))
        print(f"\n{path.name}", flush=True)
        one = argparse.Namespace(**vars(options) | {"artifact": path, "cpu": cpu if cpu.is_file() else None})
        try:
            report = check(one)
        except EchoError as error:
            print(f"gpu_check: {error}")
            bad.append(path.name)
            continue
        _print(report)
        bad += [] if _is_right(report) else [path.name]
    print("\nall is right" if not bad else f"\nWRONG: {', '.join(bad)}")
    return 1 if bad else 0


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for, as JSON-able data; times in seconds."""
    report: dict[str, Any] = {"artifact": str(options.artifact)}
    if not options.skip_start:
        report["first_token"] = [first_token(options.artifact) for _ in range(2)]
    begin = time.perf_counter()
    program = Program(options.artifact, state_bytes=options.state_bytes)
    if not isinstance(program.device, GpuDevice):
        raise EchoError(f"{options.artifact} was compiled for {program.manifest.device}, wanted a GPU")
    report["load"] = {"total": time.perf_counter() - begin} | program.device.seconds
    manifest = program.manifest
    report["device"] = program.device.info | {
        "driver": open_driver(manifest.device).version,
        "target": f"{manifest.device}:{manifest.level}",
        "weight_bytes": manifest.weight_bytes,
        "pages": program.device.num_pages,
    }
    report["copy_bytes_per_second"] = 2 * options.copy_bytes / min(program.device.copy_seconds(options.copy_bytes, 20))
    generator = np.random.default_rng(options.seed)
    tokens = generator.integers(1, manifest.model["vocab_size"], options.prompt + options.decode, dtype=np.int32)
    if options.cpu is not None:
        cpu = Program(options.cpu, state_bytes=options.state_bytes)
        report["logits"] = compare(program, cpu, tokens, options.prompt, options.tolerance)
    report["deterministic"] = alone_and_together(options, tokens) if _is_deterministic(program) else None
    report["prefill"] = prefill(program, tokens[: options.prompt])
    report["decode"] = [decode(program, tokens, options, batch) for batch in options.batches]
    del program
    report["generate"] = generate(options) if options.generate else []
    return report


def generate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """`LLM.generate`, greedy, to a fixed length, with as many prompts as `batches` say.

    Tokens are chosen on the device where the artifact can, and once more by the host from the logits. Times are from a
    short and a long run, so that prompts and captures do not count.
    """
    batches = options.batches
    llm = LLM(options.artifact, max_num_seqs=max(batches), enable_prefix_caching=False)
    generator = np.random.default_rng(options.seed)
    length = min(options.prompt, llm.model.stepper.context_length - options.generate - 1)
    return [_generate(llm, generator, length, options.generate, options.hosted, batch) for batch in batches]


def _generate(llm: LLM, generator: Any, length: int, count: int, hosted: int, batch: int) -> dict[str, Any]:
    prompts = generator.integers(1, llm.model.stepper.vocab_size, (batch, length)).tolist()

    def run(tokens: int, **changes: Any) -> tuple[float, list[list[int]]]:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **changes)
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds = time.perf_counter() - begin
        for output in outputs:
            if output.error is not None:
                raise output.error
        return seconds, [output.outputs[0].token_ids for output in outputs]

    few = max(count // 8, 2)
    run(count)
    short = min(run(few)[0] for _ in range(3))
    long, tokens = min(run(count) for _ in range(3))
    whole = [run(1)[0] for _ in range(3)]
    step = (long - short) / (count - few)
    entry = {
        "batch": batch, "prompt": length, "tokens": count, "seconds_per_step": step, "tokens_per_second": batch / step,
        "seconds": long, "first_tokens": min(whole), "hosted_seconds_per_step": None, "same_tokens": None,
    }  # fmt: skip
    if hosted > 1:  # asking for log-probabilities leaves the choice to the host
        begin, _ = run(1, logprobs=0)
        seconds, wanted = run(min(hosted, count), logprobs=0)
        differing = [row for row, (a, b) in enumerate(zip(tokens, wanted, strict=True)) if a[: len(b)] != b]
        entry |= {
            "hosted_seconds_per_step": (seconds - begin) / (len(wanted[0]) - 1),
            "same_tokens": not differing,
            "differing_rows": differing,
        }
    return entry


def compare(gpu: Program, cpu: Program, tokens: Any, prompt: int, tolerance: float) -> dict[str, Any]:
    """Logits of a prompt and of the tokens behind it, one by one, on both."""
    rows: dict[str, list[Logits]] = {"prefill": [], "decode": []}
    with gpu.create() as left, cpu.create() as right:
        _check_instances(left, right)
        for at in range(0, prompt, step := _chunk(gpu, cpu)):
            chunk = tokens[at : min(at + step, prompt)]
            rows["prefill"] += [np.stack([left.step(chunk, rows="all"), right.step(chunk, rows="all")])]
        for token in tokens[prompt:]:
            rows["decode"] += [np.stack([left.step([token]), right.step([token])])]
    parts = {name: _difference(np.concatenate(found, axis=1)) for name, found in rows.items() if found}
    agree = all(part["max_relative"] <= tolerance for part in parts.values())
    return parts | {"tolerance": tolerance, "agree": agree}


def _check_instances(*instances: Any) -> None:
    for instance in instances:
        if not isinstance(instance, Instance):
            raise EchoError("the artifact holds no language model; its logits cannot be compared")


def _chunk(*programs: Program) -> int:
    return min(min(program.max_tokens(), program.max_rows()) for program in programs)


def _difference(pair: Logits) -> dict[str, Any]:
    """f32 [2, rows, vocabulary]. Relative errors are in units of a row's largest deviation from its mean."""
    found, wanted = pair.astype(np.float64)
    error = np.abs(found - wanted)
    scale = np.abs(wanted - wanted.mean(axis=1, keepdims=True)).max(axis=1)
    same = found.argmax(axis=1) == wanted.argmax(axis=1)
    top = np.sort(wanted, axis=1)[:, -2:]
    return {
        "rows": int(same.size),
        "finite": bool(np.isfinite(found).all()),
        "max_absolute": float(error.max()),
        "max_relative": float(np.nan_to_num((error.max(axis=1) / scale).max(), nan=np.inf)),
        "rms_relative": float(np.sqrt((error**2).mean()) / np.sqrt(((wanted - wanted.mean()) ** 2).mean())),
        "same_argmax": int(same.sum()),
        "margins_of_others": [float(high - low) for low, high in top[~same]],
    }


def _is_deterministic(program: Program) -> bool:
    return any(variant.deterministic for variant in program.manifest.variants)


def alone_and_together(options: argparse.Namespace, tokens: Any) -> dict[str, Any]:
    """The deterministic variant: logits of sequences in one batch and of each by itself, compared to the bit."""
    program = Program(options.artifact, state_bytes=options.state_bytes, deterministic=True)
    count = min(max(options.batches), max(len(tokens) // 2, 1), 16)
    chunks = [tokens[row : row + 1 + row % max(options.prompt // 2, 1)] for row in range(count)]
    last = [[int(tokens[row])] for row in range(count)]

    def logits(rows: Sequence[int]) -> list[Any]:
        """After a prompt each, and after one token more."""
        instances = [program.create() for _ in rows]
        try:
            return [program.advance(instances, [given[row] for row in rows]) for given in (chunks, last)]
        finally:
            for instance in instances:
                instance.release()

    together, alone = logits(range(count)), [logits([row]) for row in range(count)]
    differing = [
        row for row in range(count) if any(not np.array_equal(alone[row][i][0], together[i][row]) for i in range(2))
    ]
    return {"rows": count, "differing_rows": differing}


def prefill(program: Program, tokens: Any) -> dict[str, Any]:
    """A prompt by itself, host included: seconds of five runs."""
    tokens = tokens[: program.max_tokens()]
    seconds = []
    for _ in range(5):
        with program.create() as instance:
            begin = time.perf_counter()
            instance.step(tokens)
            seconds.append(time.perf_counter() - begin)
    return {"tokens": len(tokens), "seconds": _spread(seconds)}


def decode(program: Program, tokens: Any, options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Steps of one token for each of `batch` sequences behind the prompt: replayed on the device, and with the host."""
    device: Any = program.device
    prompt = tokens[: min(options.prompt, program.max_tokens())]
    instances = [program.create() for _ in range(batch)]
    try:
        for instance in instances:
            instance.step(prompt)
        ones = [[int(tokens[-1])]] * batch
        hosted = []
        for _ in range(20):
            begin = time.perf_counter()
            program.advance(instances, ones)
            hosted.append(time.perf_counter() - begin)
        device.replay(20)
        replayed = device.replay(options.replays)
        kernels = _profile(program, lambda: program.advance(instances, ones))
    finally:
        for instance in instances:
            instance.release()
    median = statistics.median(replayed)
    return {
        "batch": batch,
        "context": len(prompt) + 20,
        "replay": _spread(replayed),
        "hosted": _spread(hosted),
        "weight_bytes_per_second": program.manifest.weight_bytes / median if median else 0.0,
        "kernels": kernels,
    }


def _profile(program: Program, step: Any) -> list[dict[str, Any]]:
    """Seconds of every launch of a step, the kernels of one name together, the slowest first."""
    before = program.device.counters()
    program.device.set_profiling(True)
    for _ in range(5):
        step()
    program.device.set_profiling(False)
    for variant, (old, new) in enumerate(zip(before, program.device.counters(), strict=True)):
        steps = new["profiled_steps"] - old["profiled_steps"]
        if steps:
            seconds = (np.array(new["launch_seconds"]) - np.array(old["launch_seconds"])) / steps
            launches = program.manifest.variants[variant].launches
            break
    totals: dict[str, list[float]] = {}
    for launch, each in zip(launches, seconds, strict=True):
        totals.setdefault(launch.kernel, []).append(float(each))
    found = [{"kernel": name, "launches": len(each), "seconds": sum(each)} for name, each in totals.items()]
    return sorted(found, key=lambda entry: -entry["seconds"])


def first_token(artifact: Path) -> dict[str, Any]:
    """Seconds from the start of a fresh process to its first token behind four others."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", _FIRST_TOKEN, str(artifact), "[1, 2, 3, 4]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EchoError(f"a fresh process fails: {done.stderr.strip().splitlines()[-1]}")
    parts: dict[str, Any] = json.loads(done.stdout)
    return {"process": time.perf_counter() - begin} | parts


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "min": ordered[0],
        "p90": ordered[min(len(ordered) * 9 // 10, len(ordered) - 1)],
    }


def _print(report: dict[str, Any]) -> None:
    device = report["device"]
    print(f"{device['name']} ({device['architecture']}), driver {device['driver']}, artifact for {device['target']}")
    print(f"copy within memory {report['copy_bytes_per_second'] / 1e9:.0f} GB/s (bytes read and written)")
    print(f"weights {device['weight_bytes'] / 1e9:.3f} GB, load " + _parts(report["load"]))
    for start in report.get("first_token", []):
        print(f"process to first token {start['process']:.2f} s: " + _parts(start))
    for name in ("prefill", "decode"):
        if part := report.get("logits", {}).get(name):
            print(
                f"{name:8} {part['rows']} rows, argmax same in {part['same_argmax']}, largest error "
                f"{part['max_absolute']:.4g} ({part['max_relative']:.2%} of a row's range), "
                f"rms {part['rms_relative']:.2%}"
            )
    if "logits" in report:
        verdict = "agree" if report["logits"]["agree"] else "DO NOT AGREE"
        print(f"logits {verdict} within {report['logits']['tolerance']:.0%}")
    if rows := report["deterministic"]:
        found = rows["differing_rows"]
        verdict = f"DIFFER in rows {found}" if found else "are the same to the bit"
        print(f"deterministic logits of {rows['rows']} sequences, together and alone, {verdict}")
    first = report["prefill"]
    print(f"prefill of {first['tokens']} tokens: {first['seconds']['median'] * 1e3:.3f} ms with the host")
    for entry in report["decode"]:
        replay, hosted = entry["replay"], entry["hosted"]
        print(
            f"decode, batch {entry['batch']}, context {entry['context']}: {replay['median'] * 1e6:.1f} us replayed "
            f"(min {replay['min'] * 1e6:.1f}, p90 {replay['p90'] * 1e6:.1f}), {hosted['median'] * 1e6:.1f} us with the "
            f"host, weights at {entry['weight_bytes_per_second'] / 1e9:.0f} GB/s"
        )
        for kernel in entry["kernels"][:12]:
            print(f"  {kernel['seconds'] * 1e6:9.1f} us  {kernel['launches']:4} x {kernel['kernel']}")
    for entry in report["generate"]:
        print(
            f"generate, batch {entry['batch']}, {entry['tokens']} tokens after {entry['prompt']}: "
            f"{entry['seconds_per_step'] * 1e3:.3f} ms a step, {entry['tokens_per_second']:.0f} tokens/s, first tokens "
            f"after {entry['first_tokens'] * 1e3:.1f} ms"
        )
        if entry["same_tokens"] is not None:
            verdict = "the same tokens" if entry["same_tokens"] else f"OTHER TOKENS in rows {entry['differing_rows']}"
            print(f"  by the host {entry['hosted_seconds_per_step'] * 1e3:.3f} ms a step, {verdict}")


def _parts(seconds: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items() if isinstance(value, float))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("artifact", type=Path, nargs="?", help="a language model compiled for cuda or rocm")
    what.add_argument("--all", type=Path, metavar="FOLDER", help="check everything in a folder")
    parser.add_argument("--cpu", type=Path, help="the same model compiled for cpu, to compare logits with")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens behind it, one by one")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="sequences of the timed decode steps")
    parser.add_argument("--replays", type=int, default=200, help="timed steps of each")
    parser.add_argument("--generate", type=int, default=128, help="tokens of the timed `LLM.generate`; 0: none")
    parser.add_argument("--hosted", type=int, default=16, help="tokens that the host chooses again; below 2: none")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of the logits, in units of a row's range")
    parser.add_argument("--state-bytes", type=int, default=2 << 30, help="bytes of pages")
    parser.add_argument("--copy-bytes", type=int, default=1 << 30, help="bytes of the timed copy")
    parser.add_argument("--seed", type=int, default=0, help="of the prompt's tokens")
    parser.add_argument("--skip-start", action="store_true", help="leave out the fresh processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

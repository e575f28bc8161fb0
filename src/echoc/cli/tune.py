"""`echoc tune`: measure schedules on this machine, so that later compilations here use the quickest."""

from pathlib import Path
from typing import Annotated

import typer

from echoc.cli.compile import GroupOption, KvDtypeOption, WeightsDtype, WeightsDtypeOption
from echoc.cli.console import DebugOption, JsonOption, print_json, progress_bar, say, stopwatch, verb


@verb
def command(
    model: Annotated[Path, typer.Argument(help="Folder with config.json, or a config.json; weights are not read.")],
    target: Annotated[str, typer.Option("--target", help="cpu (this machine) or cpu:LEVEL that it has.")] = "cpu",
    weights_dtype: WeightsDtypeOption = WeightsDtype.bf16,
    kv_dtype: KvDtypeOption = None,
    group: GroupOption = 32,
    rows: Annotated[int, typer.Option("--batch", min=2, max=12, help="Rows of the batched decode that is timed.")] = 8,
    prompt: Annotated[int, typer.Option("--prefill", min=33, help="Tokens of the prefill that is timed.")] = 512,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements of each candidate, in turns.")] = 3,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: the cores at hand.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time the schedules of a model's matmuls on this machine, and keep the best for `echoc compile`."""
    device, _, level = target.partition(":")
    if device != "cpu":
        raise typer.BadParameter(f"{target!r} is not tuned here: schedules are measured on CPUs, with cpu or cpu:LEVEL")
    from echoc.compiler.tuning import tune

    with stopwatch() as seconds, progress_bar(enabled=not as_json) as progress:
        choices, path = tune(
            model, level=level or "native", weights_dtype=weights_dtype.value, kv_dtype=kv_dtype and kv_dtype.value,
            group=group, rows=rows, prompt=prompt, rounds=rounds, threads=threads, progress=progress,
        )  # fmt: skip
    if as_json:
        entries = [{"kernel": c.kernel, "schedule": dict(c.schedule), "gain": dict(c.gain)} for c in choices]
        print_json({"database": str(path), "seconds": seconds(), "kernels": entries})
        return
    for choice in choices:
        gains = ", ".join(f"{phase} {gain:.2f}x" for phase, gain in sorted(choice.gain.items()))
        chosen = ", ".join(f"{k} {v}" for k, v in choice.schedule.items()) or "the default"
        typer.echo(f"{choice.kernel}: {chosen} ({gains})")
    say(f"kept in {path} after {seconds():.0f} s; `echoc compile` on this machine uses it")

"""`echoc compile`: a model folder in, one artifact out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from echoc.cli.console import DebugOption, JsonOption, human_bytes, print_json, progress_bar, say, stopwatch, verb


class WeightsDtype(StrEnum):
    """Formats in which an artifact can hold the weights."""

    f32 = "f32"
    bf16 = "bf16"
    fp8 = "fp8"
    int8 = "int8"
    int4 = "int4"


class KvDtype(StrEnum):
    """Formats in which keys and values can be held."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"
    int8 = "int8"
    fp8 = "fp8"


GROUPS = (32, 64, 128)


def check_group(group: int) -> int:
    """Weights that share a scale: a number the kernels are built for."""
    if group not in GROUPS:
        raise typer.BadParameter(f"{group} is not one of {', '.join(map(str, GROUPS))}")
    return group


def check_random_weights(text: str | None) -> str | None:
    """`random:SEED` with a non-negative integer seed, or nothing."""
    if text is None:
        return None
    kind, _, seed = text.partition(":")
    if kind != "random" or not seed.isdecimal():
        raise typer.BadParameter(f"{text!r} is not of the form random:SEED with a whole number, such as random:7")
    return text


WeightsDtypeOption = Annotated[WeightsDtype, typer.Option("--weights-dtype", help="Format of the packed weights.")]
GroupOption = Annotated[
    int, typer.Option("--group", callback=check_group, help="int8 and int4: weights that share a scale, 32, 64 or 128.")
]
KvDtypeOption = Annotated[
    KvDtype | None,
    typer.Option(
        "--kv-dtype",
        help="Format of the KV cache; default: f32 for f32 weights; int8 for int8 and int4 weights on CPUs with AVX-512"
        " VNNI (heads of 32, 48, 64, ...); else bf16.",
    ),
]
TargetOption = Annotated[
    str,
    typer.Option("--target", help="cpu (this machine), cpu:LEVEL such as cpu:x86-64-v3, cuda:sm_90a, rocm:gfx942, ..."),
]

SubstochasticOption = Annotated[
    bool,
    typer.Option(
        "--allow-substochastic",
        help="P-Lingua: probabilities of a block may add up to less than 1; else nothing happens.",
    ),
]


@verb
def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder with config.json and safetensors, or a config.json; or a membrane system: "
            ".pli, .kpl, .pep, .xml (SBML), or a topology: .toml."
        ),
    ],
    target: TargetOption = "cpu",
    weights_dtype: WeightsDtypeOption = WeightsDtype.bf16,
    group: GroupOption = 32,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="random:SEED",
            callback=check_random_weights,
            help="Compile without a checkpoint and fill the weights at load, for benchmarks.",
        ),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", min=1, help="Longest sequence in tokens; default: the model's.")
    ] = None,
    kv_dtype: KvDtypeOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: the model's name + .echo, here.")
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", "-I", help="P-Lingua: folder where @include<file> looks; may be repeated."),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=NUMBER", help="P-Lingua: a constant that wins over the file's."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="P-Lingua: seed of random() while the file is read.")
    ] = None,
    allow_substochastic: SubstochasticOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compile a Hugging Face model folder, or a membrane system, into one .echo artifact."""
    from echoc.cli import systems

    if systems.is_source(model) and not model.is_dir():
        options = weights is not None or context_length is not None or kv_dtype is not None
        if options or weights_dtype != WeightsDtype.bf16 or group != 32:
            raise typer.BadParameter("a membrane system has no weights and no context: leave the options of models out")
        written = output if output is not None else Path(f"{model.stem}.echo")
        elapsed = systems.compile_source(
            model, written, target, include or [], parameters or [], seed, show_progress=not as_json,
            allow_substochastic=allow_substochastic,
        )  # fmt: skip
        systems.report_compiled(written, elapsed, as_json)
        return
    if include or parameters or seed is not None or allow_substochastic:
        raise typer.BadParameter(
            "--include, --set, --seed and --allow-substochastic are for membrane systems, not for models"
        )
    from echoc.compiler.api import compile as compile_model
    from echoc.runtime.artifact import kv_dtypes

    named = model.resolve().parent if model.name == "config.json" else model.resolve()
    path = output if output is not None else Path(f"{named.name}.echo")
    with stopwatch() as seconds, progress_bar(enabled=not as_json) as progress:
        artifact = compile_model(
            str(model),
            target=target,
            weights_dtype=weights_dtype.value,
            group=group,
            weights=weights,
            output=str(path),
            context_length=context_length,
            kv_dtype=kv_dtype.value if kv_dtype is not None else None,
            progress=progress,
        )
        elapsed = seconds()
    report: dict[str, Any] = {
        "artifact": str(path), "bytes": path.stat().st_size, "seconds": round(elapsed, 3),
        "weights_dtype": weights_dtype.value, "kv_dtypes": kv_dtypes(artifact.manifest.raw),
    }  # fmt: skip
    if as_json:
        print_json(report)
    else:
        held = f"{weights_dtype.value} weights, keys and values in {' and '.join(report['kv_dtypes']) or 'no pages'}"
        say(f"wrote {path} ({human_bytes(report['bytes'])}; {held}) in {elapsed:.1f} s")

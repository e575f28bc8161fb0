"""`echoc run`: speak with a model, streaming to the terminal."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from echoc.cli.compile import GroupOption, WeightsDtype, WeightsDtypeOption
from echoc.cli.console import DebugOption, JsonOption, verb

DEFAULT_MAX_TOKENS = 256


@dataclass
class Reply:
    """What one request gave."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    seconds: float = 0.0


@verb
def command(
    model: Annotated[
        Path | None, typer.Argument(help="An .echo file or a model folder; default: the embedded pocket model.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text to go on from; - or a pipe reads standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.")] = (
        DEFAULT_MAX_TOKENS
    ),
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is greedy; default: the model's generation settings.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Choose among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Choose within this probability mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Drop tokens below this fraction of the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1 discourages tokens already there.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Converse until end of input.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message for the chat template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", "--no-chat-template", help="Leave the chat template aside.")] = False,
    weights_dtype: WeightsDtypeOption = WeightsDtype.bf16,
    group: GroupOption = 32,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: all usable cores.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Bitwise the same whatever else runs beside it.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate text with an artifact, a model folder (compiled once and kept), or the embedded pocket model."""
    if interactive and as_json:
        raise typer.BadParameter("--json gives one answer; it does not go with --interactive")

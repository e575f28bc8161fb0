"""`echoc run`: speak with a model, streaming to the terminal."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echoc.cli.compile import GroupOption, KvDtypeOption, SubstochasticOption, WeightsDtype, WeightsDtypeOption
from echoc.cli.console import DebugOption, JsonOption, print_json, say, stopwatch, verb
from echoc.cli.models import artifact_for
from echoc.errors import EchoError

if TYPE_CHECKING:
    from echoc.runtime.llm import LLM

DEFAULT_MAX_TOKENS = 256


@dataclass
class Reply:
    """What one request gave."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    seconds: float = 0.0


@verb
def command(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="An .echo file, a model folder, or a membrane system (.pli, .kpl, .pep, .xml, .toml); default: the "
            "embedded pocket model."
        ),
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
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling, or of a membrane system.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Converse until end of input.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message for the chat template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", "--no-chat-template", help="Leave the chat template aside.")] = False,
    weights_dtype: WeightsDtypeOption = WeightsDtype.bf16,
    kv_dtype: KvDtypeOption = None,
    group: GroupOption = 32,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: all usable cores.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Bitwise the same whatever else runs beside it.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Membranes: steps at most; default: until it halts.")
    ] = None,
    until: Annotated[float | None, typer.Option("--until", help="Membranes: the time of a chemical system.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Membranes: independent runs of the seed.")] = 1,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE.jsonl", help="Membranes: every configuration as JSON lines.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Membranes: print every configuration and rule applied.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Membranes: a picture of the run.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Membranes: a page that steps through the run.")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Topologies: a line a step, as JSON lines or CSV; - is a pipe."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Membranes: memory at most, such as 2G.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Keep requests in this file until their end, whatever happens."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished requests of the journal instead of a prompt.")
    ] = False,
    allow_substochastic: SubstochasticOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate text with a model (an artifact, a folder, the embedded pocket model), or run a membrane system."""
    from echoc.cli import systems

    if model is not None and model.is_file():
        if allow_substochastic and not systems.is_source(model):
            raise typer.BadParameter(f"--allow-substochastic is for reading a P-Lingua file; {model} has been read")
        with systems.as_artifact(model, not as_json, allow_substochastic) as path:
            from echoc.runtime.artifact import Artifact

            artifact = Artifact(path)
            if systems.holds_system(artifact):
                if prompt is not None or interactive or system is not None or journal is not None or resume:
                    raise typer.BadParameter("a membrane system takes no prompt and has no journal of requests")
                systems.run_system(
                    artifact,
                    systems.Wishes(
                        steps, until, seed or 0, runs, trace, plot, html, text, systems.parse_bytes(memory), threads,
                        as_json,
                        inputs,
                    ),
                )  # fmt: skip
                return
    if (
        text or allow_substochastic or runs > 1
        or any(x is not None for x in (steps, until, trace, plot, html, memory, inputs))
    ):  # fmt: skip
        raise typer.BadParameter(
            "--steps, --until, --runs, --trace, --text, --plot, --html, --input, --memory, --allow-substochastic: for "
            "membranes"
        )
    if interactive and as_json:
        raise typer.BadParameter("--json gives one answer; it does not go with --interactive")
    if interactive and prompt is not None:
        raise typer.BadParameter("--interactive asks for the prompts itself; leave --prompt out")
    if resume and journal is None:
        raise typer.BadParameter("--resume goes on with the requests of a journal: name its file with --journal")
    if resume and prompt is not None:
        raise typer.BadParameter("--resume has its prompts from the journal; leave --prompt out")
    words = None if interactive or resume else _prompt_text(prompt)
    if journal is not None and words is None and not resume:
        raise typer.BadParameter("--journal keeps single requests, no conversation; give one with --prompt")
    if resume and journal is not None and not journal.exists():
        raise EchoError(f"{journal}: no such journal, so there is nothing to resume")
    wishes = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
    }
    path = artifact_for(model, weights_dtype.value, kv_dtype and kv_dtype.value, group, show_progress=not as_json)
    import echoc

    with echoc.LLM(path, num_threads=threads, deterministic=deterministic, journal=journal) as llm:
        if resume:
            recover(llm, path, as_json)
            return
        if journal is not None and (left := len(llm.unfinished())):
            say(f"{journal} has {left} unfinished request{'s' if left > 1 else ''}; --resume goes on with what is left")
        speaker = Speaker(llm, {name: value for name, value in wishes.items() if value is not None}, system, raw)
        if words is None:
            converse(speaker)
            return
        reply = speaker.answer(words, show=not as_json)
        if as_json:
            print_json({"model": str(path), "prompt": words, **asdict(reply)})
        else:
            say_speed(reply)


class Speaker:
    """An LLM with the wishes of the command line: one prompt after another, as a chat where it has a template."""

    def __init__(self, llm: "LLM", wishes: dict[str, Any], system: str | None, raw: bool) -> None:
        self.llm = llm
        self.params = llm.default_sampling_params(**wishes)
        self.chats = llm.model.chat_template is not None and not raw
        if system is not None and not self.chats:
            why = "--raw leaves it aside" if raw else "this model has none"
            raise EchoError(f"--system needs a chat template, and {why}")
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system is not None else []

    def answer(self, text: str, show: bool) -> Reply:
        """Generate once from `text`; with `show`, standard output gets the text piece by piece."""
        if self.chats:
            self.messages.append({"role": "user", "content": text})
            prompt = self.llm.model.render_chat(self.messages)
        else:
            prompt = text
        reply = self._generate(prompt, show)
        if self.chats:
            self.messages.append({"role": "assistant", "content": reply.text})
        if show:
            _write("\n")
        return reply

    def _generate(self, prompt: str, show: bool) -> Reply:
        reply = Reply()
        with stopwatch() as seconds:
            # A rendered template spells the special tokens itself.
            pieces = self.llm.stream(prompt, self.params, add_special_tokens=not self.chats)
            if show and not self.chats:
                _write(prompt)  # taken: what follows goes on from it
            for piece in pieces:
                reply.text += piece.text
                reply.token_ids += piece.token_ids
                reply.finish_reason = piece.finish_reason
                if show and piece.text:
                    _write(piece.text)
            reply.seconds = seconds()
        return reply


def recover(llm: "LLM", path: Path, as_json: bool) -> None:
    """The whole answers of the requests that a journal has left, in order of arrival. Raises the first one's error."""
    outputs = llm.recover()
    if as_json:
        answers = [
            {
                "request_id": output.request_id, "prompt": output.prompt,
                "outputs": [
                    {"text": o.text, "token_ids": o.token_ids, "finish_reason": o.finish_reason} for o in output.outputs
                ],
                "error": None if output.error is None else str(output.error),
            }
            for output in outputs
        ]  # fmt: skip
        print_json({"model": str(path), "resumed": answers})
    for output in outputs:
        if not as_json:
            say(f"{output.request_id}:")
            for completion in output.outputs:
                _write(completion.text + "\n")
    if not outputs:
        say("the journal has no unfinished request")
    for output in outputs:
        if output.error is not None:
            raise output.error


def converse(speaker: Speaker) -> None:
    """Answer line by line until the end of input. Ctrl-C ends an answer; where the next line is asked for, the talk."""
    asked_by_person = sys.stdin.isatty()
    while True:
        if asked_by_person:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            continue
        try:
            speaker.answer(line.rstrip("\n"), show=True)
        except KeyboardInterrupt:
            if not asked_by_person:
                raise
            _write("\n")


def say_speed(reply: Reply) -> None:
    """Tokens and seconds of the answer, for a person at the terminal."""
    if sys.stderr.isatty():
        say(f"({len(reply.token_ids)} tokens in {reply.seconds:.2f} s, {reply.finish_reason})")


def _prompt_text(prompt: str | None) -> str | None:
    """The prompt; what is piped in when it is `-` or missing; None when a person is to be asked."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        return None
    return sys.stdin.read()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

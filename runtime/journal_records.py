"""Requests and what came of them as the text that a journal keeps, and back."""

import json
import time
from dataclasses import dataclass, field, fields
from typing import Any

from echoc.errors import EchoError, JournalError, RequestError
from echoc.runtime.outputs import Logprob, Logprobs
from echoc.runtime.request import Completion, Request
from echoc.runtime.sampling import SamplingParams

_DEFAULTS = SamplingParams()
_BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(slots=True)
class Recorded:
    """One output of a request: its tokens, their logprobs where they are wanted, and the end that it came to."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class Result:
    """What came of a request so far."""

    outputs: list[Recorded] = field(default_factory=list)
    prompt_logprobs: list[Logprobs | None] | None = None
    error: str | None = None
    finished: bool = False

    def put(self, index: int, position: int, token: int) -> None:
        """A token of an output; one that is there already is the same."""
        if not 0 <= index < 4096:
            raise ValueError(f"there is no output {index}")
        while len(self.outputs) <= index:
            self.outputs.append(Recorded())
        tokens = self.outputs[index].token_ids
        if position > len(tokens):
            raise ValueError(f"token {position} of output {index} follows {len(tokens)} tokens")
        tokens[position : position + 1] = [token]

    def put_logprobs(self, index: int, position: int, entry: Any) -> None:
        self.outputs[index].logprobs[position : position + 1] = [_decode_logprobs(entry)]

    def text(self) -> str:
        outputs = [
            {
                "token_ids": output.token_ids,
                "logprobs": [encode_logprobs(entry) for entry in output.logprobs],
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
            }
            for output in self.outputs
        ]
        prompt = None
        if self.prompt_logprobs is not None:
            prompt = [None if entry is None else encode_logprobs(entry) for entry in self.prompt_logprobs]
        return json.dumps(
            {"outputs": outputs, "prompt_logprobs": prompt, "error": self.error, "finished": self.finished}
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A request of the journal: what was asked for, the seed in use, and what came of it so far."""

    number: int  # its place in the order of arrivals
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    accepted: float  # seconds since 1970
    result: Result

    @property
    def finished(self) -> bool:
        """Whether it came to its end, and only its caller was not told."""
        return self.result.finished

    @property
    def token_ids(self) -> list[list[int]]:
        """The tokens of each output so far."""
        return [output.token_ids for output in self.result.outputs]


def accepted(request: Request, seed: int) -> str:
    """A request as text. Raises RequestError for a name that is none."""
    if not isinstance(request.request_id, str):
        raise RequestError(f"request_id is {request.request_id!r}, wanted a text")
    params = {f.name: getattr(request.params, f.name) for f in fields(SamplingParams)}
    changed = {name: value for name, value in params.items() if value != getattr(_DEFAULTS, name)}
    if "logit_bias" in changed:
        changed["logit_bias"] = [[token, bias] for token, bias in changed["logit_bias"].items()]
    return json.dumps(
        {
            "id": request.request_id,
            "prompt": request.prompt,
            "prompt_token_ids": request.prompt_token_ids,
            "params": changed,
            "seed": seed,
            "accepted": time.time(),
        }
    )


def ended(request: Request) -> Result:
    """What came of a request by its end."""
    outputs = [
        Recorded(_made(completion), completion.logprobs or [], completion.finish_reason, completion.stop_reason)
        for completion in request.completions
    ]
    return Result(outputs, request.prompt_logprobs, None if request.error is None else str(request.error), True)


def stopped(request: Request, error: EchoError | None) -> Result:
    """What there was when a request was stopped before its end, and why it was."""
    outputs = [Recorded(_made(completion), completion.logprobs or []) for completion in request.completions]
    return Result(outputs, None, None if error is None else str(error))


def _made(completion: Completion) -> list[int]:
    return completion.sequence.tokens[completion.sequence.num_prompt :]


def read_entry(where: str, number: int, request: str, result: str | None) -> Entry:
    """The entry of a row. Raises JournalError, with the file and the number, for a text that makes none."""
    came = read_result(where, number, result)
    try:
        asked = json.loads(request)
        params = dict(asked["params"])
        if "logit_bias" in params:
            params["logit_bias"] = dict(params["logit_bias"])
        tokens = [int(token) for token in asked["prompt_token_ids"]]
        return Entry(
            number, str(asked["id"]), asked["prompt"], tokens, SamplingParams(**params), int(asked["seed"]),
            float(asked["accepted"]), came,
        )  # fmt: skip
    except _BROKEN as error:
        raise _unreadable(where, number, error) from None


def read_result(where: str, number: int, text: str | None) -> Result:
    if text is None:
        return Result()
    try:
        came = json.loads(text)
        outputs = [
            Recorded(
                [int(token) for token in output["token_ids"]],
                [_decode_logprobs(entry) for entry in output["logprobs"]],
                output["finish_reason"],
                output["stop_reason"],
            )
            for output in came["outputs"]
        ]
        prompt = came["prompt_logprobs"]
        decoded = None if prompt is None else [None if entry is None else _decode_logprobs(entry) for entry in prompt]
        return Result(outputs, decoded, came["error"], bool(came["finished"]))
    except _BROKEN as error:
        raise _unreadable(where, number, error) from None


def encode_logprobs(logprobs: Logprobs) -> list[list[Any]]:
    return [[token, each.logprob, each.rank, each.decoded_token] for token, each in logprobs.items()]


def _decode_logprobs(entry: list[list[Any]]) -> Logprobs:
    return {int(token): Logprob(float(value), int(rank), text) for token, value, rank, text in entry}


def _unreadable(where: str, number: int, error: Exception) -> JournalError:
    return JournalError(
        f"the journal {where}: request {number} makes no sense ({type(error).__name__}: {error}); delete its row with "
        "sqlite3 to do without it"
    )

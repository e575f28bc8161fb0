"""`LLM`: the synchronous face of the engine."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from echoc.errors import EchoError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.chat import Message
from echoc.runtime.engine import Engine
from echoc.runtime.model import Model
from echoc.runtime.outputs import Increment, RequestOutput
from echoc.runtime.request import Request
from echoc.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from echoc.runtime.journal import Journal
    from echoc.runtime.journal_records import Entry

Prompt = str | Sequence[int]
PromptLike = Prompt | Mapping[str, Any]  # {"prompt": text} or {"prompt_token_ids": ids}, as vLLM's users write
DEFAULT_MAX_NUM_SEQS = 64


class LLM:
    """A language model ready to generate.

    artifact: an `Artifact` or the path of a `.echo` file. The KV cache has `num_pages` pages or as many as fit into
    `kv_cache_bytes` (default: 40% of the free memory, 90% on a GPU, or what `max_num_seqs` full contexts take if that
    is less; a CPU takes memory as pages are first used). `max_num_seqs` sequences are worked on at once,
    `max_num_batched_tokens` tokens per step. deterministic=True makes results bitwise independent of what else is in
    the batch and of how prompts are cut into chunks. `seed` is for requests that bring none: the same requests in the
    same order give the same tokens. `device_index` says which of several GPUs (default: ECHOC_DEVICE_INDEX, else the
    first).

    Methods may be called from several threads; they take turns.
    """

    def __init__(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        num_pages: int | None = None,
        kv_cache_bytes: int | None = None,
        max_num_seqs: int = DEFAULT_MAX_NUM_SEQS,
        max_num_batched_tokens: int | None = None,
        num_threads: int | None = None,
        deterministic: bool = False,
        enable_prefix_caching: bool = True,
        seed: int = 0,
        device_index: int | None = None,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = Model(
            artifact,
            num_pages=num_pages,
            kv_cache_bytes=kv_cache_bytes,
            max_num_seqs=max_num_seqs,
            num_threads=num_threads,
            deterministic=deterministic,
            prefix_cache=enable_prefix_caching,
            device_index=device_index,
        )
        self.engine = Engine(
            self.model.stepper,
            self.model.program.pool,
            tokenizer=self.model.tokenizer,
            eos_token_ids=self.model.eos_token_ids,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            seed=seed,
            journal=None if journal is None else _open_journal(journal, self.model.artifact),
        )
        self._turn = threading.RLock()

    def default_sampling_params(self, **changes: Any) -> SamplingParams:
        """The model's own generation defaults, with `changes`."""
        return self.model.default_params(**changes)

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continues every prompt; outputs come in the prompts' order.

        A prompt is a text or a list of token ids. A request that cannot be served does not touch the others: its output
        carries `error`. When all of them failed, the first error is raised (its `output` has what there was).
        """
        listed = _as_prompts(prompts)
        params = self._params_for(listed, sampling_params)
        return self._run(listed, params, add_special_tokens=True, progress=progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or a list of them, through the model's chat template."""
        several = bool(messages) and not hasattr(messages[0], "keys")
        conversations = cast(Sequence[Sequence[Message]], messages if several else [messages])
        prompts = [self.model.render_chat(conversation, **template_options) for conversation in conversations]
        params = self._params_for(prompts, sampling_params)
        return self._run(prompts, params, add_special_tokens=False, progress=progress)

    def stream(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, *, add_special_tokens: bool = True
    ) -> Iterator[Increment]:
        """Yields what each step adds to the request. Closing the iterator cancels the request."""
        increments: deque[Increment] = deque()
        params = self.model.default_params() if sampling_params is None else sampling_params
        with self._turn:
            request = self.engine.add(
                plain_prompt(prompt), params, listener=increments.append, add_special_tokens=add_special_tokens
            )
        return self._increments(request, increments)

    def unfinished(self) -> "list[Entry]":
        """The journal's requests that nobody waits for, in order of arrival: of processes that died or were closed, or
        failed by the device; those among them that came to an end which their caller was not told are `finished`.
        """
        with self._turn:
            return list(self.journal.entries())

    def recover(self, *, progress: bool = False) -> list[RequestOutput]:
        """Goes on with all of `unfinished()` to their end; outputs come in order of arrival, whole.

        They are what an undisturbed run had given: bitwise with deterministic=True, else up to the rounding of sums, as
        after a preemption. One that this engine cannot serve has an `error` and stays in the journal.
        """

        def resume(entry: "Entry") -> Request | RequestOutput:
            try:
                return self.engine.resume(entry)
            except EchoError as error:
                return RequestOutput(entry.request_id, entry.prompt, entry.prompt_token_ids, [], error=error)

        with self._turn:
            return self._finish((resume(entry) for entry in list(self.journal.entries())), progress)

    def resume(self, request_id: str) -> Iterator[Increment]:
        """Goes on with one of `unfinished()` as a stream, whose first increment of each output has what there was."""
        increments: deque[Increment] = deque()
        with self._turn:
            entry = self.journal.entry(self.journal.number_of(request_id))
            request = self.engine.resume(entry, listener=increments.append)
        return self._increments(request, increments)

    @property
    def journal(self) -> "Journal":
        """Raises RequestError where there is none."""
        if self.engine.journal is None:
            raise RequestError("there is no journal of requests: give LLM a file, journal=PATH")
        return self.engine.journal

    def abort(self, request_id: str) -> None:
        """Ends a request where it is; a journal keeps it no longer."""
        with self._turn:
            request = self.engine.requests.get(request_id)
            self.engine.abort(request_id)
            if request is not None:
                self.deliver([request])

    def close(self) -> None:
        """Ends what is running. A journal keeps it, and is closed."""
        with self._turn:
            for request_id in list(self.engine.requests):
                self.engine.abort(request_id, resumable=True)
            if self.engine.journal is not None:
                self.engine.journal.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _increments(self, request: Request, increments: "deque[Increment]") -> Iterator[Increment]:
        left = False  # by its reader, not by what happened
        try:
            while True:
                while increments:
                    increment = increments.popleft()
                    if increment.error is not None:
                        raise with_output(increment.error, request)
                    yield increment
                if request.finished:
                    return
                with self._turn:
                    if not request.finished:
                        self.engine.step()
        except GeneratorExit:
            left = True
            raise
        finally:
            with self._turn:
                if not request.finished:
                    self.engine.abort(request.request_id, resumable=not left)
                self.deliver([request])

    def _params_for(
        self, prompts: Sequence[PromptLike], given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [self.model.default_params() if given is None else given] * len(prompts)
        if len(given) != len(prompts):
            raise RequestError(
                f"there are {len(prompts)} prompts and {len(given)} sampling parameters, wanted one each"
            )
        return list(given)

    def _run(
        self,
        prompts: Sequence[PromptLike],
        params: Sequence[SamplingParams],
        *,
        add_special_tokens: bool,
        progress: bool,
    ) -> list[RequestOutput]:
        with self._turn:
            added = (self._add(prompt, each, add_special_tokens) for prompt, each in zip(prompts, params, strict=True))
            outputs = self._finish(added, progress)
        first = outputs[0].error if outputs else None
        if first is not None and all(output.error is not None for output in outputs):
            if isinstance(first, RequestError):
                first.output = outputs[0]
            raise first
        return outputs

    def _finish(self, added: Iterator[Request | RequestOutput], progress: bool) -> list[RequestOutput]:
        """Steps until all requests are done. What interrupts it ends them; a journal keeps them."""
        entries: list[Request | RequestOutput] = []
        try:
            for entry in added:
                entries.append(entry)
            requests = [entry for entry in entries if isinstance(entry, Request)]
            with _Progress(progress, len(requests)) as bar:
                while not all(request.finished for request in requests):
                    self.engine.step()
                    bar.update(sum(request.finished for request in requests))
        except BaseException:
            for entry in entries:
                self.engine.abort(entry.request_id, resumable=True)
            raise
        outputs = [entry.output() if isinstance(entry, Request) else entry for entry in entries]
        self.deliver(requests)
        return outputs

    def deliver(self, requests: Sequence[Request]) -> None:
        """Tells the journal that the callers have, or are about to get, all of these requests."""
        if self.engine.journal is not None:
            self.engine.journal.deliver(request.number for request in requests)

    def _add(self, prompt: PromptLike, params: SamplingParams, add_special_tokens: bool) -> Request | RequestOutput:
        """The request in the engine, or the output of one that was refused."""
        try:
            return self.engine.add(plain_prompt(prompt), params, add_special_tokens=add_special_tokens)
        except EchoError as error:
            return RequestOutput("refused", prompt if isinstance(prompt, str) else None, [], [], error=error)


def _as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    """One prompt or many: a list of numbers is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    listed = list(prompts)
    if not listed:
        raise RequestError("there is no prompt: give a text, a list of token ids, or a list of either")
    if all(not hasattr(entry, "__len__") for entry in listed):
        return [cast(Sequence[int], listed)]
    return cast(list[PromptLike], listed)


def plain_prompt(prompt: PromptLike) -> Prompt:
    """The text or token ids of a prompt. Raises RequestError for anything else."""
    if isinstance(prompt, Mapping):
        found = prompt.get("prompt_token_ids", prompt.get("prompt"))
        if found is None:
            raise RequestError(f"a prompt has {sorted(prompt)}, wanted 'prompt' or 'prompt_token_ids'")
        prompt = cast(Prompt, found)
    if isinstance(prompt, bytes | bytearray) or not hasattr(prompt, "__len__"):
        raise RequestError(f"a prompt is {prompt!r}, wanted a text or a list of token ids")
    return prompt


def with_output(error: EchoError, request: Request) -> EchoError:
    """The error, carrying what the request had produced."""
    if isinstance(error, RequestError):
        error.output = request.output()
    return error


def _open_journal(path: str | os.PathLike[str], artifact: Artifact) -> "Journal":
    from echoc.runtime.journal import Journal

    return Journal(path, hashlib.sha256(artifact.read("manifest.json")).hexdigest(), str(artifact.path))


class _Progress:
    """A bar over finished requests, drawn by rich only when wanted."""

    def __init__(self, wanted: bool, total: int) -> None:
        self._bar: Any = None
        if wanted:
            from rich.progress import Progress

            self._bar = Progress(transient=True)
            self._task = self._bar.add_task("generating", total=total)

    def update(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def __enter__(self) -> "_Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

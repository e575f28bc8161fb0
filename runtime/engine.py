"""The engine: takes requests, makes steps, samples, and hands out what came of it. A request may fail, the engine not.

It knows a `Stepper`, not a device: anything that turns tokens and a block table into logits can be served. Where the
stepper has a `drawer`, the device chooses the tokens of requests that want nothing but a draw from the logits as they
are; while all running ones do and nothing else is to be done, decoding loops on the device and the engine follows.
"""

import contextlib
import hashlib
import operator
import reprlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import EchoError, RequestError
from echoc.runtime import scheduler
from echoc.runtime.loop import AHEAD, Drawer, Loop
from echoc.runtime.outputs import Increment, Logprob, Logprobs
from echoc.runtime.pages import IntArray, PagePool
from echoc.runtime.request import Completion, Request
from echoc.runtime.sampling import SamplingParams
from echoc.runtime.scheduler import Chunk, Plan, Scheduler
from echoc.runtime.tokenizer import Detokenizer, Tokenizer

__all__ = ["Engine", "FloatArray", "Request", "Stepper"]

FloatArray = npt.NDArray[np.float32]
_EMPTY = "the prompt is empty; to start from nothing, give the begin token's id as the prompt"
NativeLogprobs = tuple[float, int, list[tuple[int, float]]]


class Stepper(Protocol):
    """A language model with paged state. A step takes at most `max_tokens` tokens and gives at most `max_rows` rows."""

    vocab_size: int
    context_length: int
    page_size: int
    max_tokens: int
    max_rows: int

    def step(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, rows: IntArray, block_table: IntArray
    ) -> FloatArray:
        """tokens, positions, sequences i32 [T], rows i32 [R], block_table i32 [B, M] -> logits f32 [R, vocab_size].

        The tokens of a sequence are contiguous with ascending positions; the result may be overwritten by the next
        step.
        """

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the state of whole pages, (source, destination) in order."""


class Engine:
    """Continuous batching over a stepper. Use from one thread; `add`, `abort` and `step` may be called in any order."""

    def __init__(
        self,
        stepper: Stepper,
        pool: PagePool,
        *,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Sequence[int] = (),
        max_num_seqs: int = 64,
        max_num_batched_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        budget = stepper.max_tokens if max_num_batched_tokens is None else max_num_batched_tokens
        if max_num_seqs < 1 or budget < 1:
            raise RequestError(
                f"max_num_seqs is {max_num_seqs} and max_num_batched_tokens {budget}, wanted 1 or more of each"
            )
        self.stepper, self.pool, self.tokenizer = stepper, pool, tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.scheduler = Scheduler(
            pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=min(budget, stepper.max_tokens),
            max_rows=stepper.max_rows,
        )
        self.requests: dict[str, Request] = {}
        self.num_steps = 0
        self._drawer: Drawer | None = getattr(stepper, "drawer", None)
        self._loop: Loop | None = None
        self._seed = seed
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        listener: Callable[[Increment], None] | None = None,
        add_special_tokens: bool = True,
    ) -> Request:
        """Puts a request in line. Raises RequestError for one that can never be served."""
        arrival = self._arrivals
        name = f"request-{arrival}" if request_id is None else request_id
        if name in self.requests:
            raise RequestError(f"a request named {name} is running already; give each its own request_id")
        tokens = self._tokenize(prompt, add_special_tokens)
        request = Request(name, prompt if isinstance(prompt, str) else None, tokens, params, listener)
        self._check(request)
        self._arrivals += 1
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        request.completions.append(self._first_completion(request, arrival))
        self.requests[name] = request
        self.scheduler.add(request.completions[0].sequence)
        return request

    def abort(self, request_id: str) -> None:
        """Ends a request where it is; its outputs finish with reason "abort". Unknown ids are ignored."""
        request = self.requests.get(request_id)
        if request is not None:
            for completion in request.completions:
                if completion.finish_reason is None:
                    self._end(request, completion, "abort", None)
        if self._loop is not None and not self._loop.live:
            self._leave_loop()

    def step(self) -> list[Request]:
        """Makes one step; returns the requests that finished in it."""
        if self._loop is None:
            self._loop = self._enter_loop()
        return self._step() if self._loop is None else self._follow(self._loop)

    def _step(self) -> list[Request]:
        """What the scheduler plans."""
        plan = self.scheduler.schedule()
        touched = [s.owner[0] for s, _ in plan.failed] + [chunk.sequence.owner[0] for chunk in plan.chunks]
        for sequence, error in plan.failed:
            self._fail(sequence.owner[0], error)
        plan.chunks = [chunk for chunk in plan.chunks if chunk.sequence.handle >= 0]  # without a failed one's siblings
        if plan.chunks:
            self.num_steps += 1
            try:
                records = self._records(plan)
                logits, tokens = self._run(plan, records)
                self._digest(plan, logits, tokens)
            except Exception as error:
                self._fail_sequences([chunk.sequence for chunk in plan.chunks], _as_error(error))
        return list({id(r): r for r in touched if r.finished}.values())

    def _tokenize(self, prompt: str | Sequence[int], add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError(_EMPTY)
            if self.tokenizer is None:
                raise RequestError("the artifact has no tokenizer: give the prompt as token ids")
            tokens = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
            return self._known(tokens)
        try:
            return self._known([operator.index(token) for token in prompt])
        except TypeError:
            raise RequestError(f"the prompt is {reprlib.repr(prompt)}, wanted a text or a list of token ids") from None

    def _known(self, tokens: list[int]) -> list[int]:
        """The tokens, all of which the model has an embedding for."""
        for token in tokens:
            if not 0 <= token < self.stepper.vocab_size:
                raise RequestError(f"the prompt has token {token}, the vocabulary has 0..{self.stepper.vocab_size - 1}")
        return tokens

    def _check(self, request: Request) -> None:
        params, length = request.params, len(request.prompt_token_ids)
        if length == 0:
            raise RequestError(_EMPTY)
        room = self.stepper.context_length - length
        if room < 1:
            raise RequestError(
                f"the prompt has {length} tokens and leaves no room for output in the model's context of "
                f"{self.stepper.context_length}: shorten it"
            )
        pages = -(-length // self.pool.page_size)
        if pages > self.pool.num_pages:
            raise RequestError(
                f"the prompt needs {pages} pages of {self.pool.page_size} tokens, the page pool has "
                f"{self.pool.num_pages}: give the engine more pages or shorten the prompt"
            )
        params.check_vocabulary(self.stepper.vocab_size)
        if self.tokenizer is None and (params.stop or params.bad_words):
            raise RequestError(
                "the artifact has no tokenizer: use stop_token_ids and banned_token_ids instead of strings"
            )
        if params.stop and not params.detokenize:
            raise RequestError("stop strings need the text: leave detokenize on, or use stop_token_ids")
        request.max_new_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        stops = frozenset(params.stop_token_ids or ())
        request.end_tokens = stops if params.ignore_eos else stops | self.eos_token_ids

    def _first_completion(self, request: Request, arrival: int) -> Completion:
        params, prompt = request.params, request.prompt_token_ids
        seed = params.seed
        if seed is None:
            words = _native.philox(self._seed & ((1 << 64) - 1), [arrival & 0xFFFFFFFF, arrival >> 32, 0, 1])
            seed = words[0] << 32 | words[1]
        bad = []
        if params.bad_words and self.tokenizer is not None:
            bad = [tokens for word in params.bad_words for tokens in self.tokenizer.sequences_of(word)]
        spec = params.native(seed=seed, end_tokens=sorted(request.end_tokens), bad_sequences=bad)
        salt = params.cache_salt
        sequence = scheduler.Sequence(
            key=(arrival, 0),
            tokens=list(prompt),
            num_prompt=len(prompt),
            every_row=0 if params.prompt_logprobs is None else len(prompt),
            cache_salt=0 if salt is None else int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little"),
        )
        detokenizer = None
        if self.tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(
                self.tokenizer,
                prompt,
                stop=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
            )
        sampler = _native.Sampler(spec, np.array(prompt, dtype=np.int32))
        logprobs: list[Logprobs] | None = None if params.logprobs is None else []
        completion = Completion(0, sequence, sampler, detokenizer, logprobs, seed)
        sequence.owner = (request, completion)
        return completion

    def _enter_loop(self) -> Loop | None:
        """The loop in which the device decodes what is running, begun; None where other work is to be done."""
        running = list(self.scheduler.running)
        most = min(self.scheduler.max_rows, self.scheduler.max_num_batched_tokens)
        fits = 0 < len(running) <= most and not self.scheduler.admits
        if self._drawer is None or not fits or not all(self._decodes(sequence) for sequence in running):
            return None
        loop = Loop(self._drawer, self.pool, running, _stacked(running), most, self.stepper.context_length)
        try:
            if loop.begin():
                return loop
        except Exception as error:
            self._fail_sequences(running, _as_error(error))
        loop.close()
        return None

    def _decodes(self, sequence: scheduler.Sequence) -> bool:
        """Whether the device can choose the next tokens of a sequence by itself."""
        num_output = len(sequence.tokens) - sequence.num_prompt
        ready = num_output > 0 and sequence.num_computed == len(sequence.tokens) - 1
        return ready and _is_plain(sequence)

    def _follow(self, loop: Loop) -> list[Request]:
        """Keeps the loop going while it may, and takes up the tokens of its earliest step."""
        live = loop.live
        touched = [sequence.owner[0] for _, sequence in live]
        try:
            while len(loop.ahead) < AHEAD and self._goes_on(loop) and loop.advance():
                pass
            tokens = loop.collect()
            self.num_steps += 1
            for row, sequence in live:
                request, completion = sequence.owner
                sequence.num_computed = len(sequence.tokens)
                if tokens[row] >= 0:
                    completion.sampler.accept(tokens[row])
                self._take_token(request, completion, tokens[row], None)
            rows = [row for row, _ in loop.live]
            loop.settle(rows, [tokens[row] for row in rows])
        except Exception as error:
            self._fail_sequences([sequence for _, sequence in live], _as_error(error))
        if not loop.ahead or not loop.live:
            self._leave_loop()
        return list({id(r): r for r in touched if r.finished}.values())

    def _goes_on(self, loop: Loop) -> bool:
        """Whether another step of the same batch is wanted."""
        if self.scheduler.admits or not loop.crowded:
            return False
        ahead = len(loop.ahead)
        return all(len(s.tokens) - s.num_prompt + ahead < s.owner[0].max_new_tokens for _, s in loop.live)

    def _leave_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            with contextlib.suppress(EchoError):  # nobody waits for these steps; of a lost device, the next one tells
                loop.close()

    def _records(self, plan: Plan) -> IntArray | None:
        """What the device is asked for in a step all of whose tokens it can choose; None where the host chooses."""
        if self._drawer is None:
            return None
        drawing, rows, row = [], [], 0
        for chunk in plan.chunks:
            sequence = chunk.sequence
            row += chunk.rows
            if sequence.every_row or (chunk.rows and not _is_plain(sequence)):
                return None
            if chunk.rows:
                drawing.append(sequence)
                rows.append(row - 1)
        if not drawing:
            return None
        records = _stacked(drawing)
        records[:, 0] = rows
        records[:, 8] = [len(s.tokens) - s.num_prompt for s in drawing]
        return records

    def _run(self, plan: Plan, records: IntArray | None) -> tuple[FloatArray | None, list[int] | None]:
        """Logits, or the tokens where the device chooses them."""
        chunks = plan.chunks
        if plan.copies:
            self.stepper.copy_pages(plan.copies)
        batch = self.pool.batch(
            [c.sequence.handle for c in chunks], [c.start for c in chunks], [c.tokens for c in chunks], all_rows=False
        )
        ends = batch["rows"]
        wanted = [
            np.arange(end - c.rows + 1, end + 1, dtype=np.int32) for end, c in zip(ends, chunks, strict=True) if c.rows
        ]
        batch["rows"] = np.concatenate(wanted) if wanted else ends[-1:]
        if records is None or self._drawer is None:
            return self.stepper.step(**batch), None
        return None, self._drawer.draw(batch, records)

    def _digest(self, plan: Plan, logits: FloatArray | None, tokens: list[int] | None) -> None:
        """Takes up the results of a step: commits pages, forks where a prompt is done, samples."""
        drawing: list[tuple[Request, Completion, int]] = []
        row = 0
        for chunk in plan.chunks:
            sequence = chunk.sequence
            request, completion = sequence.owner
            sequence.num_computed = chunk.start + chunk.tokens.size
            self.pool.commit(sequence.handle)
            row += chunk.rows
            if sequence.every_row and logits is not None:
                self._read_prompt(request, chunk, logits, row - chunk.rows)
            if sequence.num_computed < len(sequence.tokens):
                continue
            sequence.every_row = 0
            drawing.append((request, completion, row - 1))
            if len(request.completions) < request.params.n:
                request.num_cached_tokens = sequence.num_cached
                drawing.extend((request, child, row - 1) for child in self._fork(request, completion))
            elif len(sequence.tokens) == sequence.num_prompt:
                request.num_cached_tokens = sequence.num_cached
        if not drawing:
            return
        if logits is not None:
            sampled = _native.sample([c.sampler for _, c, _ in drawing], logits, [r for _, _, r in drawing])
        else:
            assert tokens is not None
            sampled = [(token, None) for token in tokens]
            for (_, completion, _), token in zip(drawing, tokens, strict=True):
                if token >= 0:
                    completion.sampler.accept(token)
        for (request, completion, _), (token, logprobs) in zip(drawing, sampled, strict=True):
            self._take_token(request, completion, token, logprobs)

    def _fork(self, request: Request, first: Completion) -> list[Completion]:
        """The other outputs of a request whose prompt is done: they share its pages."""
        children = []
        for index in range(1, request.params.n):
            parent = first.sequence
            sequence = scheduler.Sequence(
                key=(parent.key[0], index),
                tokens=list(parent.tokens),
                num_prompt=parent.num_prompt,
                handle=self.pool.fork(parent.handle),
                num_computed=parent.num_computed,
                cache_salt=parent.cache_salt,
            )
            detokenizer = None if first.detokenizer is None else first.detokenizer.fork()
            logprobs: list[Logprobs] | None = None if first.logprobs is None else []
            child = Completion(index, sequence, first.sampler.fork(index), detokenizer, logprobs, first.seed)
            sequence.owner = (request, child)
            request.completions.append(child)
            self.scheduler.add_forked(sequence)
            children.append(child)
        return children

    def _take_token(
        self, request: Request, completion: Completion, token: int, logprobs: NativeLogprobs | None
    ) -> None:
        if completion.finish_reason is not None:  # ended meanwhile, by its listener or a failed sibling
            return
        if token < 0:
            reason = "the model's logits are not finite" if token == -1 else "every token is banned, none can be chosen"
            self._fail(request, RequestError(f"{request.request_id}: {reason}"))
            return
        sequence = completion.sequence
        sequence.tokens.append(token)
        fresh: list[Logprobs] | None = None
        if logprobs is not None and completion.logprobs is not None:
            fresh = [self._logprobs(token, logprobs)]
            completion.logprobs.extend(fresh)
            completion.cumulative_logprob += logprobs[0]
        num_output = len(sequence.tokens) - sequence.num_prompt
        long_enough = num_output >= request.params.min_tokens
        matched = None
        if completion.detokenizer is not None:
            matched = completion.detokenizer.add(token, may_stop=long_enough)
        if token in request.end_tokens and long_enough:
            named = token if token not in self.eos_token_ids or request.params.ignore_eos else None
            self._end(request, completion, "stop", named, [token], fresh)
        elif matched is not None:
            self._end(request, completion, "stop", matched, [token], fresh)
        elif num_output >= request.max_new_tokens:
            self._end(request, completion, "length", None, [token], fresh)
        elif request.listener is not None:
            text = "" if completion.detokenizer is None else completion.detokenizer.take()
            request.listener(Increment(request.request_id, completion.index, text, [token], fresh))

    def _read_prompt(self, request: Request, chunk: Chunk, logits: FloatArray, first_row: int) -> None:
        """Log-probabilities of the prompt's tokens after the first, from the logits of the token before each."""
        found, prompt = request.prompt_logprobs, request.prompt_token_ids
        if found is None or request.params.prompt_logprobs is None:
            return
        positions = range(max(chunk.start + 1, len(found)), min(chunk.start + chunk.rows + 1, len(prompt)))
        rows = [first_row + position - 1 - chunk.start for position in positions]
        targets = [prompt[position] for position in positions]
        entries = _native.token_logprobs(logits, rows, targets, request.params.prompt_logprobs)
        found.extend(self._logprobs(token, entry) for token, entry in zip(targets, entries, strict=True))

    def _logprobs(self, token: int, entry: NativeLogprobs) -> Logprobs:
        def text(token_id: int) -> str | None:
            return None if self.tokenizer is None else self.tokenizer.decode([token_id], skip_special_tokens=False)

        logprob, rank, top = entry
        result = {token: Logprob(logprob, rank, text(token))}
        for place, (other, value) in enumerate(top, start=1):
            if other != token:
                result[other] = Logprob(value, place, text(other))
        return result

    def _end(
        self,
        request: Request,
        completion: Completion,
        finish_reason: str,
        stop_reason: int | str | None,
        tokens: list[int] | None = None,
        logprobs: list[Logprobs] | None = None,
    ) -> None:
        """Finishes one output, and with the last of them the request."""
        completion.finish_reason, completion.stop_reason = finish_reason, stop_reason
        self.scheduler.remove(completion.sequence)
        text = ""
        if completion.detokenizer is not None:
            if not isinstance(stop_reason, str):
                completion.detokenizer.finish()
            text = completion.detokenizer.take(final=True)
        if request.finished:
            self.requests.pop(request.request_id, None)
        if request.listener is not None:
            request.listener(
                Increment(
                    request_id=request.request_id,
                    index=completion.index,
                    text=text,
                    token_ids=tokens or [],
                    logprobs=logprobs,
                    finish_reason=finish_reason,
                    stop_reason=stop_reason,
                    error=request.error,
                )
            )

    def _fail(self, request: Request, error: EchoError) -> None:
        if request.finished:
            return
        request.error = error
        for completion in request.completions:
            if completion.finish_reason is None:
                self._end(request, completion, "error", None)

    def _fail_sequences(self, sequences: Sequence[scheduler.Sequence], error: EchoError) -> None:
        """The device did not make the step: every request in it fails, the others go on."""
        for sequence in sequences:
            self._fail(sequence.owner[0], error)


def _is_plain(sequence: scheduler.Sequence) -> bool:
    """Whether the next token of a sequence is a draw from the logits as they are, for itself alone."""
    request: Request = sequence.owner[0]
    too_short = len(sequence.tokens) - sequence.num_prompt < request.params.min_tokens and bool(request.end_tokens)
    return request.params.plain and not too_short and len(request.completions) == request.params.n


def _stacked(sequences: Sequence[scheduler.Sequence]) -> IntArray:
    """i32 [len(sequences), RECORD]: what the device is asked for, in a loop."""
    for sequence in sequences:
        request, completion = sequence.owner
        if completion.record is None:
            draw = 1 - sequence.num_prompt
            completion.record = request.params.record(seed=completion.seed, stream=completion.index, draw=draw, row=0)
    return np.stack([sequence.owner[1].record for sequence in sequences])


def _as_error(error: Exception) -> EchoError:
    return error if isinstance(error, EchoError) else RequestError(f"the step failed: {type(error).__name__}: {error}")

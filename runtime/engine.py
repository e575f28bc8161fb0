"""The engine: takes requests, makes steps, samples, and hands out what came of it. A request may fail, the engine not.

It knows a `Stepper`, not a device: anything that turns tokens and a block table into logits can be served. Where the
stepper has a `drawer`, the device chooses the tokens of requests that want nothing but a draw from the logits as they
are; while all running ones do and nothing else is to be done, decoding loops on the device and the engine follows.
Where it has a `chooser`, a step hands out the best logits alone if they decide all of its tokens.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import DeviceMemoryError, EchoError, RequestError
from echoc.runtime import scheduler
from echoc.runtime.admission import Admission, sibling
from echoc.runtime.candidates import Candidates, Chooser
from echoc.runtime.loop import AHEAD, Drawer, Loop
from echoc.runtime.outputs import Increment, Logprob, Logprobs
from echoc.runtime.pages import IntArray, PagePool
from echoc.runtime.request import Completion, Request
from echoc.runtime.sampling import SamplingParams
from echoc.runtime.scheduler import Chunk, Plan, Scheduler
from echoc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from echoc.runtime.journal import Journal
    from echoc.runtime.journal_records import Entry

__all__ = ["Engine", "FloatArray", "Request", "Stepper"]

FloatArray = npt.NDArray[np.float32]
Result = FloatArray | list[int] | Candidates  # of a step: logits, tokens, or the best logits
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
    """Continuous batching over a stepper. Use from one thread; `add`, `abort` and `step` may be called in any order.

    With a journal, a request is on disk before its first step, and each step's tokens before the step returns.
    """

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
        journal: "Journal | None" = None,
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
        self._chooser: Chooser | None = getattr(stepper, "chooser", None)
        self._loop: Loop | None = None
        self._admission = Admission(
            stepper.vocab_size, stepper.context_length, pool, tokenizer, self.eos_token_ids, seed
        )
        self.journal = journal
        self._arrivals = 0 if journal is None else journal.next_number

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
        tokens = self._admission.tokenize(prompt, add_special_tokens)
        request = Request(name, prompt if isinstance(prompt, str) else None, tokens, params, listener)
        self._admission.check(request)
        first = self._admission.first(request, arrival, self._admission.seed_of(request, arrival))
        if self.journal is not None:
            self.journal.accept(arrival, request, first.seed)
        self._arrivals += 1
        self.requests[name] = request
        self.scheduler.add(first.sequence)
        return request

    def resume(self, entry: "Entry", *, listener: Callable[[Increment], None] | None = None) -> Request:
        """Goes on with a request of the journal as after a preemption: its tokens are read again, then come new ones.

        The listener's first increments carry what there is already. Raises RequestError where this engine can not serve
        the request; it stays in the journal.
        """
        if self.journal is None or entry.number not in self.journal.owed:
            raise RequestError(f"the journal has no unfinished request {entry.number} named {entry.request_id!r}")
        if entry.request_id in self.requests:
            raise RequestError(f"a request named {entry.request_id} is running already")
        for tokens in (entry.prompt_token_ids, *entry.token_ids):
            self._admission.known(tokens)
        request = Request(entry.request_id, entry.prompt, list(entry.prompt_token_ids), entry.params)
        self._admission.check(request)
        first = self._admission.first(request, entry.number, entry.seed)
        begun = len(entry.token_ids) if entry.finished else entry.params.n if any(entry.token_ids) else 1
        for index in range(1, begun):
            sibling(request, first, index)
        self.journal.resume(entry.number)
        self.requests[entry.request_id] = request
        self._replay(request, entry)
        if listener is not None:
            request.listener = listener
            for increment in request.so_far():
                listener(increment)
        going = [completion.sequence for completion in request.completions if completion.finish_reason is None]
        for sequence in going:
            sequence.every_row = 0
            self.scheduler.add(sequence)
        if going and entry.params.prompt_logprobs is not None:
            going[0].every_row = len(request.prompt_token_ids)
        return request

    def abort(self, request_id: str, *, resumable: bool = False) -> None:
        """Ends a request where it is; its outputs finish with reason "abort". Unknown ids are ignored.

        resumable: the journal keeps the request as one that was stopped, not given up.
        """
        request = self.requests.get(request_id)
        if request is not None:
            if resumable and self.journal is not None:
                self.journal.interrupt(request, None)
            for completion in request.completions:
                if completion.finish_reason is None:
                    self._end(request, completion, "abort", None)
            if self.journal is not None:
                self.journal.commit()
        if self._loop is not None and not self._loop.live:
            self._leave_loop()

    def step(self) -> list[Request]:
        """Makes one step; returns the requests that finished in it."""
        if self._loop is None:
            self._loop = self._enter_loop()
        finished = self._step() if self._loop is None else self._follow(self._loop)
        if self.journal is not None:
            self.journal.commit()
        return finished

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
                self._digest(plan, self._run(plan, self._records(plan), self._wanted(plan)))
            except Exception as error:
                count = sum(chunk.tokens.size for chunk in plan.chunks)
                self._not_made([chunk.sequence for chunk in plan.chunks], count, error)
        finished = [request for request in touched if request.finished]
        return list(dict.fromkeys(finished)) if finished else finished

    def _enter_loop(self) -> Loop | None:
        """The loop in which the device decodes what is running, begun; None where other work is to be done."""
        if self._drawer is None:
            return None
        running = list(self.scheduler.running)
        most = min(self.scheduler.max_rows, self.scheduler.max_num_batched_tokens)
        fits = 0 < len(running) <= most and not self.scheduler.admits
        if not fits or not all(self._decodes(sequence) for sequence in running):
            return None
        loop = Loop(self._drawer, self.pool, running, _stacked(running), most, self.stepper.context_length)
        try:
            if loop.begin():
                return loop
        except Exception as error:
            self._not_made(running, len(running), error)
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
            self._not_made([sequence for _, sequence in live], len(live), error)
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

    def _wanted(self, plan: Plan) -> IntArray | None:
        """How many of the best logits of each row decide the tokens of a step; None where more than those is wanted."""
        if self._chooser is None:
            return None
        wanted = []
        for chunk in plan.chunks:
            if chunk.sequence.every_row:
                return None
            if chunk.rows:
                sampler: _native.Sampler = chunk.sequence.owner[1].sampler
                wanted.append(sampler.num_candidates(self.stepper.vocab_size))
                if not 0 < wanted[-1] <= self._chooser.most:
                    return None
        return np.array(wanted or [0], np.int32)

    def _run(self, plan: Plan, records: IntArray | None, wanted: IntArray | None) -> Result:
        """Logits, or the tokens where the device chooses them, or the best logits where those are enough."""
        chunks = plan.chunks
        if plan.copies:
            self.stepper.copy_pages(plan.copies)
        batch = self.pool.batch(
            [c.sequence.handle for c in chunks], [c.start for c in chunks], [c.tokens for c in chunks], all_rows=False
        )
        if any(chunk.rows != 1 for chunk in chunks):
            ends = batch["rows"]
            asked = [np.arange(end - c.rows + 1, end + 1, dtype=np.int32) for end, c in zip(ends, chunks, strict=True)]
            batch["rows"] = np.concatenate(asked) if any(c.rows for c in chunks) else ends[-1:]
        if records is not None and self._drawer is not None:
            return self._drawer.draw(batch, records)
        if wanted is not None and self._chooser is not None:
            return self._chooser.choose(batch, wanted)
        return self.stepper.step(**batch)

    def _digest(self, plan: Plan, result: Result) -> None:
        """Takes up the results of a step: commits pages, forks where a prompt is done, samples."""
        drawing: list[tuple[Request, Completion, int]] = []
        row = 0
        for chunk in plan.chunks:
            sequence = chunk.sequence
            request, completion = sequence.owner
            sequence.num_computed = chunk.start + chunk.tokens.size
            self.pool.commit(sequence.handle)
            row += chunk.rows
            if sequence.every_row and isinstance(result, np.ndarray):
                self._read_prompt(request, chunk, result, row - chunk.rows)
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
        for (request, completion, _), (token, logprobs) in zip(drawing, self._sampled(drawing, result), strict=True):
            self._take_token(request, completion, token, logprobs)

    def _sampled(
        self, drawing: Sequence[tuple[Request, Completion, int]], result: Result
    ) -> list[tuple[int, NativeLogprobs | None]]:
        """The token of each (request, completion, row), taken up by its sampler; negative where there is none."""
        samplers, rows = [c.sampler for _, c, _ in drawing], [row for _, _, row in drawing]
        if isinstance(result, np.ndarray):
            return _native.sample(samplers, result, rows)
        if isinstance(result, Candidates):
            return [(token, None) for token in result.choose(samplers, rows, self.stepper.vocab_size)]
        for sampler, token in zip(samplers, result, strict=True):
            if token >= 0:
                sampler.accept(token)
        return [(token, None) for token in result]

    def _fork(self, request: Request, first: Completion) -> list[Completion]:
        """The other outputs of a request whose prompt is done: they share its pages."""
        children = []
        for index in range(1, request.params.n):
            child = sibling(request, first, index)
            child.sequence.handle = self.pool.fork(first.sequence.handle)
            child.sequence.num_computed = first.sequence.num_computed
            self.scheduler.add_forked(child.sequence)
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
        fresh: list[Logprobs] | None = None
        if logprobs is not None and completion.logprobs is not None:
            fresh = [self._logprobs(token, logprobs)]
        if self.journal is not None:
            sequence = completion.sequence
            position = len(sequence.tokens) - sequence.num_prompt
            self.journal.token(request.number, completion.index, position, token, fresh)
        self._put_token(request, completion, token, fresh)

    def _put_token(self, request: Request, completion: Completion, token: int, fresh: list[Logprobs] | None) -> None:
        """One more token of an output, and the output's end where it is one."""
        sequence = completion.sequence
        sequence.tokens.append(token)
        if fresh is not None and completion.logprobs is not None:
            completion.logprobs.extend(fresh)
            completion.cumulative_logprob += fresh[0][token].logprob
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
            if self.journal is not None:
                self.journal.finish(request)
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

    def _not_made(self, sequences: Sequence[scheduler.Sequence], num_tokens: int, error: Exception) -> None:
        """The device did not make a step. Where it had too little memory for one of that size, it is asked for half."""
        if not isinstance(error, DeviceMemoryError) or num_tokens < 2:
            self._fail_sequences(sequences, _as_error(error))
            return
        self.scheduler.max_num_batched_tokens = num_tokens // 2
        warnings.warn(
            f"{error}. That was for a step of {num_tokens} tokens; from now on it takes {num_tokens // 2}",
            RuntimeWarning,
            stacklevel=2,
        )
        for sequence in sequences:
            if sequence in self.scheduler.running:
                self.scheduler.preempt(sequence)

    def _fail_sequences(self, sequences: Sequence[scheduler.Sequence], error: EchoError) -> None:
        """The device did not make the step: every request in it fails, the others go on. A journal keeps them."""
        for sequence in sequences:
            request: Request = sequence.owner[0]
            if self.journal is not None and not request.finished:
                self.journal.interrupt(request, error)
            self._fail(request, error)

    def _replay(self, request: Request, entry: "Entry") -> None:
        """Puts a request where its journal left it."""
        if entry.finished:
            request.prompt_logprobs = entry.result.prompt_logprobs
            request.error = None if entry.result.error is None else RequestError(entry.result.error)
        for completion, made in zip(request.completions, entry.result.outputs, strict=False):
            for at, token in enumerate(made.token_ids):
                if completion.finish_reason is None:
                    completion.sampler.accept(token)
                    self._put_token(request, completion, token, made.logprobs[at : at + 1] or None)
            if made.finish_reason is not None and completion.finish_reason is None:
                self._end(request, completion, made.finish_reason, made.stop_reason)


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

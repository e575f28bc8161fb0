"""Which sequences the next step works on: continuous batching, chunked prefill, preemption, first come first served.

Pure bookkeeping over a page pool; no device, no tokens chosen.
"""

import bisect
import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from echoc.errors import RequestError
from echoc.runtime.pages import IntArray, PageCopies, PagePool


@dataclass(eq=False, slots=True)
class Sequence:
    """A sequence being read or written: `tokens` are prompt and output, the first `num_computed` are in its pages.

    `key` (arrival, index) is its place in the line, kept through preemptions. `every_row` asks for the logits of all
    tokens up to `every_row`, not only of the last one. `owner` belongs to the engine.
    """

    key: tuple[int, int]
    tokens: list[int]
    num_prompt: int
    owner: Any = None
    handle: int = -1
    num_computed: int = 0
    every_row: int = 0
    cache_salt: int = 0
    num_cached: int = 0
    preemptions: int = 0

    def __lt__(self, other: "Sequence") -> bool:
        return self.key < other.key


@dataclass(slots=True)
class Chunk:
    """`tokens` of `sequence` from position `start` on; `rows` of them from the end want logits."""

    sequence: Sequence
    start: int
    tokens: IntArray
    rows: int


@dataclass(slots=True)
class Plan:
    """A step: page copies to do first, in order, then the chunks; and the sequences that cannot go on."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: PageCopies = field(default_factory=list)
    failed: list[tuple[Sequence, RequestError]] = field(default_factory=list)


class Scheduler:
    """Shares each step's token budget among sequences in order of arrival.

    A running sequence goes before a waiting one. When pages run out, the latest arrival gives its pages back and waits
    (it is computed again later); so the earliest always moves on and nobody starves. A sequence that does not fit into
    the whole pool fails alone.
    """

    def __init__(self, pool: PagePool, *, max_num_seqs: int, max_num_batched_tokens: int, max_rows: int) -> None:
        self.pool = pool
        self.max_num_seqs = min(max_num_seqs, max_rows)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_rows = max_rows
        self.waiting: list[Sequence] = []  # a heap
        self.running: list[Sequence] = []  # sorted
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence without pages in line."""
        heapq.heappush(self.waiting, sequence)

    def add_forked(self, sequence: Sequence) -> None:
        """Takes a sequence that holds pages already; it waits without them when too many run."""
        if len(self.running) < self.max_num_seqs:
            bisect.insort(self.running, sequence)
        else:
            self._give_back(sequence)
            self.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, finished or not, and gives its pages back."""
        self._give_back(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            heapq.heapify(self.waiting)

    @property
    def admits(self) -> bool:
        """Whether the next step may take in a waiting sequence; what it shares with others is not counted."""
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return False
        total = -(-len(self.waiting[0].tokens) // self.pool.page_size)
        if not self.running or total > self.pool.num_pages:
            return True
        promised = sum(self.pool.pages_for(s.handle, len(s.tokens) - self.pool.length(s.handle)) for s in self.running)
        return promised + total <= self.pool.num_available

    def schedule(self) -> Plan:
        """The next step. Pages of its chunks are reserved; nothing but the plan's copies and chunks may write them."""
        plan = Plan()
        budget, rows = self.max_num_batched_tokens, self.max_rows
        at = 0
        while at < len(self.running) and budget > 0 and rows > 0:
            sequence = self.running[at]
            chunk = self._reserve(sequence, budget, rows, plan)
            if chunk is not None:
                budget -= chunk.tokens.size
                rows -= chunk.rows
            at += 1 if at < len(self.running) and self.running[at] is sequence else 0
        while self.waiting and budget > 0 and rows > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._admit(sequence, plan):
                break
            chunk = self._reserve(sequence, budget, rows, plan) if sequence.handle >= 0 else None
            if chunk is not None:
                budget -= chunk.tokens.size
                rows -= chunk.rows
        return plan

    def _reserve(self, sequence: Sequence, budget: int, rows: int, plan: Plan) -> Chunk | None:
        """Room for the sequence's next chunk, at later arrivals' expense if need be."""
        start = sequence.num_computed
        size = min(budget, len(sequence.tokens) - start)
        if start < sequence.every_row:
            size = min(size, rows)
            wanted_rows = size
        else:
            wanted_rows = int(start + size == len(sequence.tokens))
        tokens = np.array(sequence.tokens[start : start + size], dtype=np.int32)
        while (copies := self.pool.append(sequence.handle, tokens)) is None:
            victim = self.running[-1]
            if victim is not sequence and all(victim is not chunk.sequence for chunk in plan.chunks):
                self.preempt(victim)
            elif len(self.running) > 1:
                return None  # everybody else came first: wait for their pages
            else:
                self.remove(sequence)
                plan.failed.append((sequence, self._too_large(sequence)))
                return None
        plan.copies.extend(copies)
        chunk = Chunk(sequence, start, tokens, wanted_rows)
        plan.chunks.append(chunk)
        return chunk

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Starts the first waiting sequence if its tokens will fit beside what the running ones still have to read."""
        total = -(-len(sequence.tokens) // self.pool.page_size)
        if total > self.pool.num_pages:
            heapq.heappop(self.waiting)
            plan.failed.append((sequence, self._too_large(sequence)))
            return True
        tokens = np.array(sequence.tokens, dtype=np.int32)
        use_cache = sequence.every_row == 0  # a cached prefix gives no logits
        handle, held = self.pool.create(tokens, cache_salt=sequence.cache_salt, use_cache=use_cache)
        promised = sum(self.pool.pages_for(s.handle, len(s.tokens) - self.pool.length(s.handle)) for s in self.running)
        if (
            self.running
            and promised + self.pool.pages_for(handle, len(sequence.tokens) - held) > self.pool.num_available
        ):
            self.pool.release(handle)
            return False
        heapq.heappop(self.waiting)
        sequence.handle, sequence.num_computed, sequence.num_cached = handle, held, held
        bisect.insort(self.running, sequence)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Puts a running sequence back in line, without its pages: it is computed again."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.preemptions += 1
        self.num_preemptions += 1
        heapq.heappush(self.waiting, sequence)

    def _give_back(self, sequence: Sequence) -> None:
        if sequence.handle >= 0:
            self.pool.release(sequence.handle)
            sequence.handle, sequence.num_computed = -1, 0

    def _too_large(self, sequence: Sequence) -> RequestError:
        room = self.pool.num_pages * self.pool.page_size
        return RequestError(
            f"a sequence of {len(sequence.tokens)} tokens does not fit into the page pool, which holds {room} tokens "
            f"({self.pool.num_pages} pages of {self.pool.page_size}): give the engine more pages or ask for less"
        )

"""Decoding that closes on the device: each step leaves its tokens to the next, and the host follows one step behind."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from echoc.runtime.pages import IntArray, PageCopies, PagePool
from echoc.runtime.scheduler import Sequence as Text

ROOM = 16  # pages by which a table may grow before the batch is laid out anew
AHEAD = 2  # steps in the device's stream: while one runs, its follower is already there


class Drawer(Protocol):
    """A language model on a device that chooses tokens itself; records are i32 [D, 16] (`SamplingParams.record`)."""

    def draw(self, batch: Mapping[str, IntArray], records: IntArray) -> list[int]:
        """One step by the ports of `PagePool.batch` -> a token for each record; negative where none can be chosen."""

    def begin(self, batch: Mapping[str, IntArray], records: IntArray) -> None:
        """Lays out a loop of steps of one token and one record for each sequence. No step is made yet."""

    def advance(self, block_table: IntArray | None) -> None:
        """Puts the next step in line, behind a new block table of the same shape if there is one; does not wait."""

    def collect(self) -> list[int]:
        """Waits for the earliest step that was not collected: its tokens."""

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the state of whole pages, behind the steps in line."""


class Loop:
    """One batch that decodes on the device. A row whose sequence ends goes on, in a page that nobody reads, until the
    batch is laid out anew; rows that fill the batch up to a size that recurs begin so.

    The sequences' last tokens are not computed yet; `records` are those that their tokens are asked for with.
    """

    def __init__(
        self, drawer: Drawer, pool: PagePool, sequences: Sequence[Text], records: IntArray, most_rows: int, context: int
    ) -> None:
        self.drawer, self.pool, self.context = drawer, pool, context
        self.size = rows_for(len(sequences), most_rows)
        self.rows: list[Text | None] = [*sequences, *[None] * (self.size - len(sequences))]
        self.positions = np.zeros(self.size, np.int32)  # of the tokens that the next step reads
        self.positions[: len(sequences)] = [len(s.tokens) - 1 for s in sequences]
        self.ahead: deque[int] = deque()  # for each step in line, how many rows are live when it begins
        self._records = np.zeros((self.size, records.shape[1]), np.int32)
        self._records[: len(sequences)] = records
        self._records[:, 0] = np.arange(self.size)
        self._spare = pool.create(np.empty(0, np.int32), use_cache=False)[0]
        self._table = np.empty((0, 0), np.int32)
        self._changed = False

    @property
    def live(self) -> list[tuple[int, Text]]:
        """The rows that still have a sequence; one that was ended meanwhile leaves its row to the spare page."""
        for row, sequence in enumerate(self.rows):
            if sequence is not None and sequence.handle < 0:
                self.rows[row] = None
                self._table[row] = self._spare_page
                self._changed = True
        return [(row, sequence) for row, sequence in enumerate(self.rows) if sequence is not None]

    @property
    def crowded(self) -> bool:
        """Whether the batch is worth its size; else a smaller one does the same."""
        return rows_for(max(len(self.live), 1), self.size) == self.size

    def begin(self) -> bool:
        """Makes the first step; False, with nothing changed, when there are not enough pages."""
        live = [(row, s) for row, s in enumerate(self.rows) if s is not None]
        if self.pool.append(self._spare, np.zeros(1, np.int32)) is None:
            return False
        self._spare_page = self.pool.pages(self._spare)[0]
        copies = self.pool.extend([s.handle for _, s in live])
        if copies is None:
            return False
        self.pool.settle([s.handle for _, s in live], [s.tokens[-1] for _, s in live])
        pages = [self.pool.pages(s.handle) for _, s in live]
        most = max(len(p) for p in pages)
        width = self.pool.table_width(most + max(ROOM, most // 4))
        self._table = np.full((self.size, width), self._spare_page, np.int32)
        for (row, _), own in zip(live, pages, strict=True):
            self._table[row, : len(own)] = own
        tokens = np.zeros(self.size, np.int32)
        tokens[: len(live)] = [s.tokens[-1] for _, s in live]
        numbers = np.arange(self.size, dtype=np.int32)
        self._copy(copies)
        self.drawer.begin(
            {
                "tokens": tokens,
                "positions": self.positions.copy(),
                "sequences": numbers,
                "rows": numbers,
                "block_table": self._table,
            },
            self._records,
        )
        self._advance(len(live))
        return True

    def advance(self) -> bool:
        """Puts one more step in line; False when the batch must be laid out anew first."""
        live = self.live
        end = int(self.positions.max())
        if not live or end >= self.context or end // self.pool.page_size >= self._table.shape[1]:
            return False
        copies = self.pool.extend([s.handle for _, s in live])
        if copies is None:
            return False
        for row, sequence in live:
            at, inside = divmod(int(self.positions[row]), self.pool.page_size)
            if inside == 0 or copies:
                self._table[row, at] = self.pool.pages(sequence.handle)[at]
                self._changed = True
        self._copy(copies)
        self._advance(len(live))
        return True

    def collect(self) -> list[int]:
        """The tokens of the earliest step in line, one a row; that of a row without a sequence means nothing."""
        self.ahead.popleft()
        return self.drawer.collect()

    def settle(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Tells the pool the tokens collected for rows that go on: the input of the step in line, if there is one."""
        handles = [sequence.handle for row in rows if (sequence := self.rows[row]) is not None]
        if self.ahead:
            self.pool.settle(handles, tokens)
        else:
            for handle in handles:
                self.pool.commit(handle)

    def close(self) -> None:
        """Waits for what is in line and drops it."""
        try:
            while self.ahead:
                self.collect()
        finally:
            self.ahead.clear()
            if self._spare >= 0:
                self.pool.release(self._spare)
                self._spare = -1

    def _copy(self, copies: PageCopies) -> None:
        if copies:
            self.drawer.copy_pages(copies)

    def _advance(self, num_live: int) -> None:
        self.drawer.advance(self._table if self._changed else None)
        self._changed = False
        self.positions += 1
        self.ahead.append(num_live)


def rows_for(count: int, most: int) -> int:
    """The rows of a batch of `count` sequences: few sizes, so that graphs recur; at most a quarter or 7 are idle."""
    step = 1 << max(count.bit_length() - 3, 0)
    if count > 4:
        step = max(step, 8) if count > 8 else 4
    wanted = 1 << (count - 1).bit_length() if count <= 4 else -(-count // step) * step
    return max(min(wanted, most), count)

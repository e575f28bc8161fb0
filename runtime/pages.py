"""The page pool: create, fork (copy on write), append, release, and the ports of a step over several sequences."""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from echoc import _native

IntArray = npt.NDArray[np.int32]
PageCopies = list[tuple[int, int]]


class PagePool:
    """`num_pages` pages of `page_size` tokens. Handles name sequences; a released or unknown one raises ValueError.

    The bookkeeping is native (runtime/native/pager.h) and knows no device: `append` returns the page copies that the
    caller must do before the pages are written. Block tables are as wide as they need to be, or with `widest_table` of
    few widths up to this one, so that a device sees the same sizes again while sequences grow.
    """

    def __init__(
        self, num_pages: int, page_size: int, *, prefix_cache: bool = True, widest_table: int | None = None
    ) -> None:
        self.page_size = page_size
        self.widest_table = widest_table
        self.num_pages = num_pages
        self.prefix_cache = prefix_cache
        self._numbers = np.arange(0, dtype=np.int32)  # of the sequences of a step
        self._pager = _native.Pager(num_pages, page_size, prefix_cache, secrets.randbits(64))

    @property
    def num_available(self) -> int:
        """Pages that can be had: free ones and cached ones that nobody holds."""
        return self._pager.num_available

    @property
    def num_cached(self) -> int:
        return self._pager.num_cached

    @property
    def num_sequences(self) -> int:
        return self._pager.num_sequences

    def memory(self) -> dict[str, int]:
        """In pages: those that sequences hold, the most ever held or cached at once, and as many as there are."""
        return {
            "pages": self._pager.num_held, "peak_pages": self._pager.peak_pages, "max_pages": self.num_pages,
        }  # fmt: skip

    def create(self, tokens: IntArray, *, cache_salt: int = 0, use_cache: bool = True) -> tuple[int, int]:
        """A new sequence that already holds the longest cached prefix of `tokens` short of the last: (handle, held)."""
        return self._pager.create(tokens, cache_salt, use_cache)

    def fork(self, sequence: int) -> int:
        """A new sequence holding the same tokens in the same pages."""
        return self._pager.fork(sequence)

    def append(self, sequence: int, tokens: IntArray) -> PageCopies | None:
        """Room for `tokens` behind the sequence: page copies to do first, or None when the pages do not suffice."""
        return self._pager.append(sequence, tokens)

    def commit(self, sequence: int) -> None:
        """The appended tokens' state is written: later sequences may share full pages."""
        self._pager.commit(sequence)

    def extend(self, sequences: Sequence[int]) -> PageCopies | None:
        """Room for one token behind each sequence, which `settle` names: page copies, or None, as `append` does."""
        return self._pager.extend(sequences)

    def settle(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        """Names the last token of each sequence; the state of those before it is written."""
        self._pager.settle(sequences, tokens)

    def release(self, sequence: int) -> None:
        self._pager.release(sequence)

    def length(self, sequence: int) -> int:
        return self._pager.length(sequence)

    def pages(self, sequence: int) -> list[int]:
        return self._pager.pages(sequence)

    def references(self, page: int) -> int:
        """How many sequences hold the page."""
        return self._pager.references(page)

    def drop_cache(self) -> None:
        """Forgets the cached prefixes that no sequence holds."""
        self._pager.drop_cache()

    def pages_for(self, sequence: int, num_tokens: int) -> int:
        """Pages that appending `num_tokens` takes from the pool."""
        return self._pager.pages_for(sequence, num_tokens)

    def block_table(self, sequences: Sequence[int]) -> IntArray:
        """i32 [len(sequences), most pages of any]: each sequence's pages in order, zeros behind."""
        if self.widest_table is None:
            return self._pager.block_table(sequences)
        width = self.table_width(max((self._pager.num_pages_of(s) for s in sequences), default=0))
        table = np.empty((len(sequences), width), dtype=np.int32)
        self._pager.fill_block_table(sequences, table)
        return table

    def table_width(self, num_pages: int) -> int:
        """The columns of a block table in which no sequence has more pages than these."""
        if self.widest_table is None or num_pages >= self.widest_table:
            return max(num_pages, 1)
        step = max(8, 1 << max(num_pages.bit_length() - 3, 0))  # at most 7 or a quarter more
        return min(max(-(-num_pages // step) * step, 1), self.widest_table)

    def batch(
        self, sequences: Sequence[int], starts: Sequence[int], chunks: Sequence[IntArray], *, all_rows: bool
    ) -> dict[str, IntArray]:
        """The input ports of a step that appends chunks[i] to sequences[i] at position starts[i], all i32.

        tokens, positions, sequences [T]; rows [R], the tokens whose output is wanted; block_table [B, M].
        """
        if all(chunk.size == 1 for chunk in chunks):  # a step that decodes waits for this: few calls
            if self._numbers.size != len(chunks):
                self._numbers = np.arange(len(chunks), dtype=np.int32)
                self._numbers.flags.writeable = False
            each = self._numbers
            return {
                "tokens": np.concatenate(chunks) if len(chunks) > 1 else chunks[0],
                "positions": np.array(starts, dtype=np.int32),
                "sequences": each,
                "rows": each,
                "block_table": self.block_table(sequences),
            }
        sizes = np.array([chunk.size for chunk in chunks], dtype=np.int32)
        ends = np.cumsum(sizes, dtype=np.int32)
        total = int(ends[-1])
        spread = np.repeat(np.asarray(starts, dtype=np.int32) - (ends - sizes), sizes)
        return {
            "tokens": np.concatenate(chunks) if len(chunks) > 1 else chunks[0],
            "positions": np.arange(total, dtype=np.int32) + spread,
            "sequences": np.repeat(np.arange(len(chunks), dtype=np.int32), sizes),
            "rows": np.arange(total, dtype=np.int32) if all_rows else ends - 1,
            "block_table": self.block_table(sequences),
        }

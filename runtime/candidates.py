"""The best logits of each row in place of all: enough for tokens that are greedy or drawn from the top k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from echoc import _native
from echoc.runtime.memory import Bytes
from echoc.runtime.pages import IntArray


@dataclass(frozen=True, slots=True)
class Candidates:
    """What `num_threads` threads found: u8 lists of at most `most` logits for each of `num_rows` rows, as
    kernels/cpu/choose.h lays them out."""

    lists: Bytes
    num_threads: int
    num_rows: int
    most: int

    def choose(self, samplers: Sequence[_native.Sampler], rows: Sequence[int], vocabulary: int) -> list[int]:
        """A token for each sampler from its row, as from all `vocabulary` logits, added to its history; a negative one
        where none can be chosen: -1, a logit is NaN or +infinity; -2, all are -infinity."""
        return _native.choose(samplers, self.lists, self.num_threads, self.num_rows, self.most, vocabulary, rows)

    def best(self, row: int) -> tuple[list[tuple[int, float]], bool]:
        """[(token, logit)] of a row, best first, from each thread as many as were wanted where it saw so many; and
        whether a logit is NaN or +infinity. Those of -infinity are left out."""
        return _native.candidates(self.lists, self.num_threads, self.num_rows, self.most, row)


class Chooser(Protocol):
    """A language model that can hand out the best logits alone."""

    most: int  # of a row

    def choose(self, batch: Mapping[str, IntArray], wanted: IntArray) -> Candidates:
        """One step by the ports of `PagePool.batch`, with `wanted` i32 [R] candidates of each row, 0 to `most`. The
        result may be overwritten by the next step."""

"""The pager alone, against an obvious model: every sequence's tokens, and what its pages hold after the copies."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from echoc.runtime.pages import PagePool


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


class PagerMachine(RuleBasedStateMachine):
    sequences = Bundle("sequences")
    tokens = st.lists(st.integers(0, 1), min_size=0, max_size=9)  # two tokens only, so that prefixes are shared often

    @initialize(num_pages=st.integers(1, 9), page_size=st.integers(1, 4), cache=st.booleans())
    def begin(self, num_pages: int, page_size: int, cache: bool) -> None:
        self.pool = PagePool(num_pages, page_size, prefix_cache=cache)
        self.memory = np.full((num_pages, page_size), -1, dtype=np.int32)
        self.alive: dict[int, list[int]] = {}

    @rule(target=sequences, tokens=tokens, salt=st.integers(0, 1))
    def create(self, tokens: list[int], salt: int) -> int:
        handle, held = self.pool.create(array(tokens), cache_salt=salt)
        assert held % self.pool.page_size == 0
        assert held == 0 or held < len(tokens)
        assert held == 0 or self.pool.prefix_cache
        self.alive[handle] = tokens[:held]
        return handle

    @rule(target=sequences, source=sequences)
    def fork(self, source: int) -> int:
        handle = self.pool.fork(source)
        assert handle not in self.alive
        self.alive[handle] = list(self.alive[source])
        return handle

    @rule(handle=sequences, tokens=tokens)
    def append(self, handle: int, tokens: list[int]) -> None:
        known, size = self.alive[handle], self.pool.page_size
        pages, available = self.pool.pages(handle), self.pool.num_available
        tail_is_shared = len(known) % size != 0 and self.holders()[pages[-1]] > 1
        wanted = -(-(len(known) + len(tokens)) // size) - len(pages) + (tail_is_shared and bool(tokens))
        assert self.pool.pages_for(handle, len(tokens)) == (wanted if tokens else 0)
        copies = self.pool.append(handle, array(tokens))
        if copies is None:
            assert wanted > available
            assert self.pool.pages(handle) == pages
            return
        assert wanted <= available
        for source, destination in copies:
            self.memory[destination] = self.memory[source]
        table = self.pool.block_table([handle])[0]
        for position, token in enumerate(tokens, start=len(known)):
            self.memory[table[position // size], position % size] = token
        self.alive[handle] = known + tokens

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def extend_and_settle(self, tokens: list[int]) -> None:
        handles = list(self.alive)[: len(tokens)]
        before = [self.pool.pages(handle) for handle in handles]
        needed = sum(self.pool.pages_for(handle, 1) for handle in handles)
        copies = self.pool.extend(handles)
        if copies is None:
            assert needed > self.pool.num_available
            assert [self.pool.pages(handle) for handle in handles] == before
            return
        for source, destination in copies:
            self.memory[destination] = self.memory[source]
        for handle, token in zip(handles, tokens, strict=False):
            at, inside = divmod(len(self.alive[handle]), self.pool.page_size)
            self.memory[self.pool.pages(handle)[at], inside] = token
            self.alive[handle] = [*self.alive[handle], token]
        self.pool.settle(handles, tokens[: len(handles)])

    @rule(handle=sequences)
    def commit(self, handle: int) -> None:
        self.pool.commit(handle)

    @rule(handle=consumes(sequences))
    def release(self, handle: int) -> None:
        self.pool.release(handle)
        del self.alive[handle]
        with pytest.raises(ValueError, match="does not exist or was released"):
            self.pool.release(handle)

    @rule()
    def drop_cache(self) -> None:
        self.pool.drop_cache()
        assert self.pool.num_cached == 0

    def holders(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for handle in self.alive:
            for page in self.pool.pages(handle):
                counts[page] = counts.get(page, 0) + 1
        return counts

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        if not hasattr(self, "pool"):
            return
        for handle, tokens in self.alive.items():
            pages = self.pool.pages(handle)
            assert self.pool.length(handle) == len(tokens)
            assert len(pages) == -(-len(tokens) // self.pool.page_size)
            assert self.memory[pages].reshape(-1)[: len(tokens)].tolist() == tokens

    @invariant()
    def no_page_is_lost_or_counted_twice(self) -> None:
        if not hasattr(self, "pool"):
            return
        counts = self.holders()
        assert all(self.pool.references(page) == counts.get(page, 0) for page in range(self.pool.num_pages))
        assert self.pool.num_available == self.pool.num_pages - len(counts)
        memory = self.pool.memory()
        assert (memory["pages"], memory["max_pages"]) == (len(counts), self.pool.num_pages)
        assert len(counts) + self.pool.num_cached <= memory["peak_pages"] <= self.pool.num_pages
        assert self.pool.num_sequences == len(self.alive)


PagerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestPager = PagerMachine.TestCase


def filled(pool: PagePool, tokens: list[int]) -> int:
    handle, held = pool.create(array(tokens))
    assert pool.append(handle, array(tokens[held:])) is not None
    pool.commit(handle)
    return handle


def test_a_released_prefix_is_found_again() -> None:
    pool = PagePool(8, 4)
    pool.release(filled(pool, list(range(10))))
    assert pool.num_cached == 2
    assert pool.create(array(list(range(10))))[1] == 8
    assert pool.create(array([*range(8), 99]))[1] == 8
    assert pool.create(array([*range(7), 99, 8]))[1] == 4
    assert pool.create(array([99, *range(10)]))[1] == 0


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = PagePool(8, 4)
    pool.release(filled(pool, list(range(8))))
    assert pool.create(array(list(range(8))))[1] == 4


def test_the_same_page_after_another_prefix_is_not_a_hit() -> None:
    pool = PagePool(8, 2)
    pool.release(filled(pool, [1, 2, 3, 4]))
    assert pool.create(array([3, 4, 5]))[1] == 0
    assert pool.create(array([9, 9, 3, 4, 5]))[1] == 0


def test_another_salt_is_not_a_hit() -> None:
    pool = PagePool(8, 2)
    handle, _ = pool.create(array([1, 2, 3]), cache_salt=7)
    pool.append(handle, array([1, 2, 3]))
    pool.commit(handle)
    assert pool.create(array([1, 2, 3]), cache_salt=8)[1] == 0
    assert pool.create(array([1, 2, 3]), cache_salt=7)[1] == 2
    assert pool.create(array([1, 2, 3]), cache_salt=7, use_cache=False)[1] == 0


def test_uncommitted_pages_are_not_found() -> None:
    pool = PagePool(8, 2)
    handle, _ = pool.create(array([1, 2, 3]))
    pool.append(handle, array([1, 2, 3]))
    assert pool.create(array([1, 2, 3]))[1] == 0
    pool.commit(handle)
    assert pool.create(array([1, 2, 3]))[1] == 2


def test_a_settled_token_is_found_when_its_page_is_written() -> None:
    pool = PagePool(8, 2)
    handle = filled(pool, [1, 2, 3])
    for token in (4, 5):
        assert pool.extend([handle]) == []
        found, held = pool.create(array([1, 2, 3, 4, 5]))
        assert held == 2  # nobody finds a page with a token that is not named, or not written
        pool.release(found)
        pool.settle([handle], [token])
    assert pool.create(array([1, 2, 3, 4, 5]))[1] == 4
    assert pool.create(array([1, 2, 3, 0, 5]))[1] == 2


def test_the_least_recently_used_prefix_goes_first() -> None:
    pool = PagePool(4, 2)
    pool.release(filled(pool, [1, 1, 0]))
    pool.release(filled(pool, [2, 2, 0]))
    pool.release(pool.create(array([1, 1, 0]))[0])  # used again, so that [2, 2] is the oldest
    handle, _ = pool.create(array([5]))
    pool.append(handle, array([5] * 5))
    assert pool.create(array([2, 2, 0]))[1] == 0
    assert pool.create(array([1, 1, 0]))[1] == 2


def test_a_forked_tail_is_copied_once_and_full_pages_never() -> None:
    pool = PagePool(8, 4)
    first = filled(pool, [1, 2, 3, 4, 5])
    second = pool.fork(first)
    pages = pool.pages(first)
    assert pool.append(second, array([6])) == [(pages[1], pool.pages(second)[1])]
    assert pool.append(first, array([7])) == []
    assert pool.pages(first) == pages
    assert pool.pages(second)[0] == pages[0]


def test_the_block_table_pads_with_zeros() -> None:
    pool = PagePool(8, 2)
    long, short = filled(pool, [1, 2, 3, 4, 5]), filled(pool, [9])
    table = pool.block_table([short, long])
    assert table.dtype == np.int32
    assert table.tolist() == [[*pool.pages(short), 0, 0], pool.pages(long)]


def test_tables_of_few_widths_are_hardly_wider_than_needed() -> None:
    pool = PagePool(3000, 4, prefix_cache=False, widest_table=1000)
    handle, _ = pool.create(np.empty(0, np.int32), use_cache=False)
    widths = []
    for needed in range(1, 1001):
        pool.append(handle, np.zeros(4, np.int32))
        table = pool.block_table([handle])
        widths.append(table.shape[1])
        assert needed <= widths[-1] <= min(needed + max(7, needed / 4), 1000)
        assert not table[0, needed:].any()
    assert len(set(widths)) < 30
    assert widths[-1] == 1000

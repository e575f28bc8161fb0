"""The memory of a program's states on a CPU, in huge pages that fill up whatever the number of states.

A huge page is 2 MB. Were each state of each layer to grow in a region of its own, a model of 16 layers would take 64 MB
for its first token, and end in 32 huge pages half empty. So the states lie in turn: some of the first one's pages, as
many of the second one's and so forth, then the next pages of the first. Kernels know nothing of it: they find page t of
a state at base + t * bytes_per_page, and where t is taken from the block table, `entries` puts the page's place there.
"""

import mmap

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import ArtifactError, DeviceError
from echoc.runtime.manifest import Manifest
from echoc.runtime.memory import Bytes, ask_for_huge_pages, spread_over_nodes

_PAGE = 4096
_RUN = 128 << 10  # of a state's pages that lie together: long enough for the hardware's prefetchers

Entries = npt.NDArray[np.int32]


class StateMemory:
    """Zeroed memory for `num_pages` pages of every state that has pages, and for every state's value.

    `data` is u8 [all bytes]; `bases` says where in it each state begins, in manifest order.
    """

    def __init__(self, manifest: Manifest, num_pages: int, where: str) -> None:
        for state in manifest.states:
            if state.kind not in ("pages", "value"):
                raise ArtifactError(
                    f"{where}: state {state.name} is of kind {state.kind!r}, this echoc knows 'pages' and 'value'"
                )
        sizes = [state.bytes_per_page for state in manifest.states if state.kind == "pages"]
        self._shift = max(_RUN // max(max(sizes, default=1), 1), 1).bit_length() - 1
        run = 1 << self._shift
        rows = -(-num_pages // run)
        # States of unequal pages lie one after another, as do those whose places no entry can count.
        self._in_turn = len(set(sizes)) == 1 and rows * run * len(sizes) <= np.iinfo(np.int32).max
        self._skipped = run * (len(sizes) - 1) if self._in_turn else 0  # pages of other states, after each run
        self.bases: list[int] = []
        end, paged = rows * run * sum(sizes) if self._in_turn else 0, 0
        for state in manifest.states:
            if state.kind == "pages" and self._in_turn:
                self.bases.append(paged * run * state.bytes_per_page)
                paged += 1
                continue
            self.bases.append(end)
            count = num_pages if state.kind == "pages" else 1  # a value belongs to the program: it has one instance
            end += -(-state.bytes_per_page * count // _PAGE) * _PAGE
        try:
            self._memory = mmap.mmap(-1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise DeviceError(f"{where}: no memory for {num_pages} pages ({error}); ask for fewer pages") from None
        ask_for_huge_pages(self._memory)
        whole: Bytes = np.frombuffer(self._memory, dtype=np.uint8)
        spread_over_nodes(whole)
        self.data = whole[:end]

    def entries(self, pages: Entries) -> Entries:
        """Places of pages, both i32 [rows, columns], in units of a state's page from its base."""
        return _native.page_places(pages, self._shift, self._skipped) if self._skipped else pages

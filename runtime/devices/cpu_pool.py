"""The memory of a program's states on a CPU: small pages of memory where a state begins, huge ones behind.

A huge page is 2 MB, and every state of every layer grows by itself: with huge pages from the start the first token of a
model of 16 layers takes 64 MB and the time to clear as much, and the last ones are half empty while little is held.
"""

import itertools
import mmap

import numpy as np

from echoc.errors import ArtifactError, DeviceError
from echoc.runtime.manifest import Manifest
from echoc.runtime.memory import Bytes, address, ask_for_huge_pages, spread_over_nodes

_PAGE = 4096
_HUGE = 2 << 20
_SMALL = 3 * _HUGE  # of each state


class StateMemory:
    """Zeroed memory for `num_pages` pages of every state that has pages, and for every state's value.

    `data` is u8 [all bytes]; `bases` says where in it each state begins, in manifest order.
    """

    def __init__(self, manifest: Manifest, num_pages: int, where: str) -> None:
        self.bases: list[int] = []
        end = 0
        for state in manifest.states:
            if state.kind not in ("pages", "value"):
                raise ArtifactError(
                    f"{where}: state {state.name} is of kind {state.kind!r}, this echoc knows 'pages' and 'value'"
                )
            self.bases.append(end)
            count = num_pages if state.kind == "pages" else 1  # a value belongs to the program: it has one instance
            end += -(-state.bytes_per_page * count // _PAGE) * _PAGE
        try:
            self._memory = mmap.mmap(-1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise DeviceError(f"{where}: no memory for {num_pages} pages ({error}); ask for fewer pages") from None
        whole: Bytes = np.frombuffer(self._memory, dtype=np.uint8)
        spread_over_nodes(whole)
        self.data = whole[:end]
        offset = address(self.data) % _HUGE
        for base, end_of_state in itertools.pairwise([*self.bases, end]):
            begin = -(-(base + offset + _SMALL) // _HUGE) * _HUGE - offset
            if begin < end_of_state:
                ask_for_huge_pages(self._memory, begin, end_of_state - begin)

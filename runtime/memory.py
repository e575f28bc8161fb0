"""Large zeroed memory straight from the operating system: in huge pages where it gives them, on all memory nodes."""

import contextlib
import mmap
import os

import numpy as np
import numpy.typing as npt

from echoc import _native

Bytes = npt.NDArray[np.uint8]


def allocate(nbytes: int) -> Bytes:
    """Zeroed u8 [nbytes] that starts on a page border; memory is committed as it is first touched.

    Raises MemoryError when the address space cannot be had.
    """
    try:
        memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"cannot map {nbytes} bytes: {error}") from None
    ask_for_huge_pages(memory)
    array: Bytes = np.frombuffer(memory, dtype=np.uint8)
    spread_over_nodes(array)
    return array[:nbytes]


def spread_over_nodes(memory: Bytes) -> None:
    """Lays the pages of `memory` [whole mapping] on all memory nodes in turn, where there are several: the threads of a
    program run on all of them, and each reads all of it. Pages that a file's cache holds stay where they are."""
    nodes = memory_nodes()
    if len(nodes) > 1:
        _native.interleave(memory, nodes)


def memory_nodes(path: str = "/sys/devices/system/node/has_memory") -> list[int]:
    """The numbers of the nodes that have memory, from Linux's list such as 0-1,4; [] where it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            ranges = [part.partition("-") for part in file.read().strip().split(",") if part]
        return [node for first, _, last in ranges for node in range(int(first), int(last or first) + 1)]
    except (OSError, ValueError):
        return []


def ask_for_huge_pages(memory: mmap.mmap, begin: int = 0, nbytes: int | None = None) -> None:
    """For `nbytes` from `begin` on (None: to the end), whole pages. A kernel that has none to give works as well, only
    slower. Of a file it reads what is not cached in large folios."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE, begin, len(memory) - begin if nbytes is None else nbytes)


def gather_in_huge_pages(memory: Bytes, num_threads: int) -> int:
    """Moves what of a file's map lies in small pages to private huge ones at the same addresses, on all memory nodes in
    turn, where less than half of the memory at hand is taken by it. Returns the bytes moved."""
    if 2 * memory.size > available_memory():
        return 0
    return _native.gather_in_huge_pages(memory, memory_nodes(), num_threads)


def address(array: npt.NDArray[np.generic]) -> int:
    """Where the array's data begins."""
    return int(array.ctypes.data)


def give_back() -> None:
    """Returns freed heap memory to the system where libc can. Reading a tokenizer frees most of what it takes."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def available_memory() -> int:
    """Bytes that can be allocated without swapping, as Linux estimates them; 4 GiB where that cannot be read."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30

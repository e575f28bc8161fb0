"""Large zeroed memory straight from the operating system, in huge pages where it gives them."""

import contextlib
import mmap
import os

import numpy as np
import numpy.typing as npt

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
    return np.frombuffer(memory, dtype=np.uint8)[:nbytes]


def ask_for_huge_pages(memory: mmap.mmap, begin: int = 0, nbytes: int | None = None) -> None:
    """For `nbytes` from `begin` on (None: to the end), whole pages. A kernel that has none to give works as well, only
    slower. Of a file it reads what is not cached in large folios."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE, begin, len(memory) - begin if nbytes is None else nbytes)


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

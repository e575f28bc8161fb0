"""Shared libraries from bytes, through a private copy: without a name where the system allows, so that none is left."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_LOADS = itertools.count()


@contextmanager
def open_library(data: bytes | memoryview) -> Iterator[str]:
    """A path under which the library can be loaded until the block ends."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("echoc-kernels")
        try:
            with os.fdopen(handle, "wb", closefd=False) as file:
                file.write(data)
            yield _unheard_of(handle)
        finally:
            os.close(handle)
        return
    with tempfile.NamedTemporaryFile(suffix=".so") as named:
        named.write(data)
        named.flush()
        yield named.name


def _unheard_of(handle: int) -> str:
    """A path of an open file that was never given before: dlopen takes a path it knows for the library it has loaded.

    The number of the call is spelled in binary between the folder and the file, as `/.` and `//.`.
    """
    digits = "".join("//." if digit == "1" else "/." for digit in f"{next(_LOADS):b}")
    return f"/proc/self/fd{digits}/{handle}"

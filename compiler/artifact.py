"""Writing a `.echo` file: a zip with stored members on 64-byte borders, beside its name and renamed when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from echoc.errors import CompileError

SCHEMA = 2  # of what is written, as runtime/manifest.py has that of what is read
ALIGN = 64
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the same input gives the same file
_ZIP64_EXTRA = 20
# File systems with large folios keep what came in one large write in huge pages of the page cache, where maps of the
# file then find it: a CPU that streams weights reads them a tenth faster.
_BUFFER = 32 << 20

Array = NDArray[Any]


@dataclass(frozen=True)
class Blob:
    """One tensor of weights.safetensors: `parts` are made one by one as they are written."""

    name: str
    nbytes: int
    parts: Callable[[], Iterable[Array]]


class ArtifactWriter:
    """Writes members one after another; nothing has the final name before `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashes: dict[str, str] = {}

    def __enter__(self) -> ArtifactWriter:
        folder = self.path.parent
        if not folder.is_dir():
            raise CompileError(f"the folder {folder} of the output {self.path.name} does not exist")
        try:
            self.file, self.temporary = _open_hidden(folder, self.path.name)
        except OSError as error:
            raise CompileError(f"cannot write to {folder}: {error}") from error
        self.zip = zipfile.ZipFile(self.file, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:  # fmt: skip
        if kind is not None:
            with contextlib.suppress(Exception):
                self.zip.close()
        with contextlib.suppress(OSError):  # what a full disk refused a moment ago it refuses again
            self.file.close()
        if kind is not None:
            if self.temporary is not None:
                self.temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise CompileError(f"writing {self.path} failed: {error.strerror or error}") from error

    def member(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """One aligned member, its SHA-256 remembered for the manifest."""
        info = zipfile.ZipInfo(name, _FIXED_TIME)
        info.external_attr = 0o644 << 16
        assert self.zip.fp is not None
        header = self.zip.fp.tell() + 30 + len(name.encode()) + _ZIP64_EXTRA + 4
        pad = -header % ALIGN
        info.extra = b"\xec\x0e" + pad.to_bytes(2, "little") + b"\0" * pad
        digest = hashlib.sha256()
        with self.zip.open(info, "w", force_zip64=True) as out:
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
        self.hashes[name] = f"sha256:{digest.hexdigest()}"

    def weights(self, name: str, blobs: Sequence[Blob], progress: Callable[[int, int], None]) -> None:
        """A safetensors member of U8 tensors, each padded to 64 bytes, its data on a 64-byte border."""
        entries: dict[str, Any] = {}
        at = 0
        for blob in blobs:
            padded = -(-blob.nbytes // ALIGN) * ALIGN
            entries[blob.name] = {"dtype": "U8", "shape": [padded], "data_offsets": [at, at + padded]}
            at += padded
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-(len(header) + 8) % ALIGN)

        def chunks() -> Iterator[bytes | memoryview]:
            yield len(header).to_bytes(8, "little") + header
            done = 0
            for blob in blobs:
                written = 0
                for part in blob.parts():
                    data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                    written += data.nbytes
                    yield data.data
                if written > blob.nbytes:
                    raise CompileError(f"weight {blob.name} is {written} bytes; {blob.nbytes} were announced")
                yield b"\0" * (-(-blob.nbytes // ALIGN) * ALIGN - written)
                done += blob.nbytes
                progress(done, at)

        self.member(name, chunks())

    def finish(self, manifest: dict[str, Any]) -> None:
        """The manifest goes last, with the hashes of all other members; then the file gets its name."""
        manifest["hashes"] = dict(self.hashes)
        self.member("manifest.json", [json.dumps(manifest, indent=1).encode()])
        self.zip.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        os.fchmod(self.file.fileno(), 0o644)
        if self.temporary is None:
            self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            self.temporary.unlink(missing_ok=True)
            _give_name(self.file.fileno(), self.temporary)
        self.temporary.replace(self.path)


def _open_hidden(folder: Path, name: str) -> tuple[BinaryIO, Path | None]:
    """A new file for writing: without a name where the system can, so that a killed process leaves nothing."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b", _BUFFER), None
    handle, path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    return os.fdopen(handle, "w+b", _BUFFER), Path(path)


def _give_name(handle: int, path: Path) -> None:
    """Links an open file without a name into a folder, as open(2) describes for O_TMPFILE."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:  # only with a folder's handle does os.link follow the link in /proc
        os.link(f"/proc/self/fd/{handle}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)

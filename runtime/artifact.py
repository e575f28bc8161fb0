"""Reading a `.echo` file: a zip of stored, 64-byte-aligned members that are used in place through one memory map."""

import hashlib
import io
import json
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import ArtifactError
from echoc.runtime.manifest import Manifest, parse_manifest
from echoc.runtime.memory import ask_for_huge_pages

ALIGNMENT = 64
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")  # APPNOTE.TXT 4.3.7, up to and with the two lengths
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LARGE = 1 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the file."""

    name: str
    offset: int
    size: int
    crc: int


def kv_dtypes(manifest: Mapping[str, Any]) -> list[str]:
    """The formats of keys and values in a raw manifest, by the names `echoc compile --kv-dtype` has for them."""
    pages = {str(state["dtype"]) for state in manifest.get("states", []) if state.get("kind") == "pages"}
    return sorted({"i8": "int8", "f8": "fp8"}.get(dtype, dtype) for dtype in pages)


class Artifact:
    """An opened artifact. The file must not change while it is open.

    Opening checks the file's structure, the manifest, and the CRC-32 of every member (`verify=False` leaves the large
    ones out), so that a truncated, foreign or damaged file raises `ArtifactError` before anything runs.
    `check_hashes()` compares the SHA-256 digests as well.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(path)
        self._open(np.frombuffer(_map_file(self.path), dtype=np.uint8), verify)

    def inside(self, name: str) -> "Artifact":
        """The artifact that a member is, in place: members begin on 64-byte borders, so its own do as well."""
        inner = object.__new__(type(self))
        inner.path = self.path / name
        inner._open(self.view(name), verify=False)  # the sum of the member has been checked with this artifact
        return inner

    def _open(self, data: Bytes, verify: bool) -> None:
        self._bytes = data
        self.members = _read_members(self.path, data)
        self._check_sums(verify)
        self.manifest: Manifest = parse_manifest(self._json("manifest.json"), str(self.path))
        for name in self.manifest.hashes:
            if name not in self.members:
                raise ArtifactError(f"{self.path} lacks its member {name}; compile the model again")

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r})"

    def view(self, name: str) -> Bytes:
        """The bytes of a member, u8 [size], in place and read-only."""
        member = self.members.get(name)
        if member is None:
            raise ArtifactError(f"{self.path} has no member {name}; it has {', '.join(sorted(self.members))}")
        return self._bytes[member.offset : member.offset + member.size]

    def read(self, name: str) -> bytes:
        return self.view(name).tobytes()

    def text(self, name: str) -> str | None:
        """A text member, or None where the artifact has none of that name."""
        if name not in self.members:
            return None
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"{self.path}: member {name} is not UTF-8 text ({error}); compile the model again"
            ) from None

    def json_member(self, name: str) -> Any:
        """A decoded JSON member, or None where the artifact has none of that name."""
        return self._json(name) if name in self.members else None

    def tensors(self, name: str) -> dict[str, Bytes]:
        """The tensors of a safetensors member as raw bytes in place, by name."""
        data = self.view(name)
        try:
            header_size = int.from_bytes(data[:8].tobytes(), "little")
            header = json.loads(data[8 : 8 + header_size].tobytes())
            body = data[8 + header_size :]
            spans = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.path}: member {name} has no safetensors header ({error})") from None
        tensors = {}
        for key, (begin, end) in spans.items():
            if not 0 <= begin <= end <= body.size:
                raise ArtifactError(f"{self.path}: tensor {key} of {name} spans {begin}..{end} of {body.size} bytes")
            tensors[key] = body[begin:end]
        return tensors

    def check_hashes(self) -> None:
        """Compares the SHA-256 digest of every member that the manifest lists; a second per gigabyte or two."""
        for name, wanted in self.manifest.hashes.items():
            found = hashlib.sha256(self.view(name).data).hexdigest()
            if found != wanted.removeprefix("sha256:"):
                raise ArtifactError(
                    f"{self.path}: member {name} has SHA-256 {found}, the manifest says {wanted}; "
                    "the file was changed after it was made, compile the model again"
                )

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise ArtifactError(f"{self.path}: member {name} is not JSON ({error})") from None

    def _check_sums(self, verify: bool) -> None:
        if "manifest.json" not in self.members:
            raise ArtifactError(f"{self.path} is a zip without manifest.json, so no echoc artifact")
        for member in self.members.values():
            data = self.view(member.name)
            if member.size < _LARGE:
                found = zlib.crc32(data.data)
            elif verify:
                found = _native.crc32(data, os.cpu_count() or 1)
            else:
                continue
            if found != member.crc:
                raise ArtifactError(
                    f"{self.path}: member {member.name} is damaged (CRC-32 {found:08x}, the file says "
                    f"{member.crc:08x}); copy the artifact again or compile the model again"
                )


def _map_file(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ArtifactError(f"no artifact at {path}; make one with: echoc compile MODEL -o {path}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path} as an artifact: {error}") from None
    ask_for_huge_pages(memory)
    return memory


class _Bytes(io.RawIOBase):
    """Bytes as a file, in place."""

    def __init__(self, data: Bytes) -> None:
        self._data, self._at = data.data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _read_members(path: Path, data: Bytes) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(io.BufferedReader(_Bytes(data))) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        begins_well = data[:4].tobytes() == _LOCAL_SIGNATURE
        what = "is truncated or damaged" if begins_well else "is no echoc artifact (not a zip file)"
        raise ArtifactError(f"{path} {what}: {error}; copy it again or compile the model again") from None
    members: dict[str, Member] = {}
    for info in infos:
        member = _locate(path, data, info)
        if member.name in members:
            raise ArtifactError(f"{path} has two members named {member.name}, so no echoc artifact")
        members[member.name] = member
    return members


def _locate(path: Path, data: Bytes, info: zipfile.ZipInfo) -> Member:
    """Checks a member's local header against the central directory and finds its data."""
    name = info.filename.encode()
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size].tobytes()
    damaged = ArtifactError(f"{path}: the header of member {info.filename} is damaged; copy the artifact again")
    if len(header) < _LOCAL_HEADER.size:
        raise damaged
    signature, _, flags, method, _, _, crc, _, _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    begin = info.header_offset + _LOCAL_HEADER.size
    same_name = data[begin : begin + name_size].tobytes() == name
    if signature != _LOCAL_SIGNATURE or not same_name or flags != info.flag_bits or crc != info.CRC:
        raise damaged
    offset = begin + name_size + extra_size
    if method != zipfile.ZIP_STORED or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ArtifactError(f"{path}: member {info.filename} is compressed or encrypted, so no echoc artifact")
    if info.compress_size != info.file_size or offset + info.file_size > data.size:
        raise ArtifactError(f"{path}: member {info.filename} ends behind the file; it is truncated, copy it again")
    if offset % ALIGNMENT:
        raise ArtifactError(f"{path}: member {info.filename} is not {ALIGNMENT}-byte aligned; was the file repacked?")
    return Member(info.filename, offset, info.file_size, info.CRC)

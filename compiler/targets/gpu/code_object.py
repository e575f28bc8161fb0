"""What an AMD code object says of its kernels: the metadata in its notes.

Source: LLVM's "User Guide for AMDGPU Backend", "Code Object Metadata": a note of type 32 named AMDGPU, a MessagePack
map; the layout of sections and notes is that of ELF-64 (System V gABI).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack

from echoc.errors import CompileError

_SHT_NOTE, _NT_METADATA = 7, 32


def kernels(image: bytes) -> dict[str, Mapping[str, Any]]:
    """The metadata of every kernel of a code object, by name: `.vgpr_count`, `.group_segment_fixed_size` (bytes), ...

    Raises: CompileError for what is no code object.
    """
    for name, kind, content in _notes(image):
        if name == b"AMDGPU\0" and kind == _NT_METADATA:
            found = msgpack.unpackb(content, strict_map_key=False)
            return {str(kernel[".name"]): kernel for kernel in found["amdhsa.kernels"]}
    raise CompileError("a code object says nothing of its kernels: wanted a note of AMDGPU with their metadata")


def _notes(image: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and content of each note of an ELF-64 file with little-endian words."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise CompileError(f"{image[:6]!r} does not begin a code object; wanted an ELF-64 file")
    (table,), (size, count) = struct.unpack_from("<Q", image, 0x28), struct.unpack_from("<HH", image, 0x3A)
    for i in range(count):
        kind, _, _, offset, length = struct.unpack_from("<IQQQQ", image, table + i * size + 4)
        at = offset
        while kind == _SHT_NOTE and at < offset + length:
            name_size, content_size, type_ = struct.unpack_from("<III", image, at)
            name, content = at + 12, at + 12 + -(-name_size // 4) * 4
            yield image[name : name + name_size], type_, image[content : content + content_size]
            at = content + -(-content_size // 4) * 4

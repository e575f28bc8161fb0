"""CUDA C++ to machine code through NVRTC, the compiler library of the pip package nvidia-cuda-nvrtc."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from echoc.errors import CompileError

ROOT = Path(__file__).parents[3]
HEADERS = ROOT / "kernels" / "cuda"
LIBRARY = "libnvrtc.so"


@dataclass(frozen=True)
class Cubin:
    """Machine code of one kernel. `shared_bytes` are the static ones; spills are bytes of stores and loads."""

    image: bytes
    entry: str
    registers: int
    spills: int
    shared_bytes: int


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC, newest first among the installed CUDA majors.

    Raises:
        CompileError: the package is missing or cannot be loaded.
    """
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    found = sorted((p for r in roots for p in r.glob(f"*/lib/{LIBRARY}.*")), key=_version, reverse=True)
    if not found:
        raise CompileError("CUDA kernels need NVRTC, which is not installed: pip install 'echoc[gpu]'")
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError as problem:
        raise CompileError(f"{found[0]} cannot be loaded: {problem}") from problem
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p
    return lib


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.name))


@functools.cache
def version() -> str:
    """The compiler's version, as "13.5"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@functools.cache
def headers() -> dict[str, bytes]:
    """The device headers by the names under which sources and each other include them."""
    out: dict[str, bytes] = {}
    for path in sorted(HEADERS.glob("*.cuh")):
        text = path.read_bytes()
        out[path.name] = text
        out[f"kernels/cuda/{path.name}"] = text
    return out


def build(source: str, entry: str, architecture: str, cache: Path | None = None) -> Cubin:
    """Compile one kernel for `architecture` ("sm_90a"); results are kept in the folder `cache`, if one is given.

    Raises:
        CompileError: NVRTC is missing or rejects the source; the message has its log.
    """
    key = hashlib.sha256()
    for part in (source, entry, architecture, version(), *(repr(h) for h in headers().items())):
        key.update(part.encode())
    stem = cache / key.hexdigest()[:32] if cache is not None else None
    if stem is not None and stem.with_suffix(".cubin").exists() and stem.with_suffix(".log").exists():
        return _cubin(stem.with_suffix(".cubin").read_bytes(), entry, stem.with_suffix(".log").read_text())
    image, log = compile_source(source, architecture)
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write(stem.with_suffix(".log"), log.encode())
        _write(stem.with_suffix(".cubin"), image)
    return _cubin(image, entry, log)


def compile_source(source: str, architecture: str, ptx: bool = False) -> tuple[bytes, str]:
    """The cubin of a source (or its PTX, for "compute_90a"), and what the compiler and the assembler said."""
    names = headers()
    program = ctypes.c_void_p()
    count = len(names)
    texts = (ctypes.c_char_p * count)(*names.values())
    includes = (ctypes.c_char_p * count)(*(n.encode() for n in names))
    _check(
        "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", ctypes.c_int(count), texts, includes
    )
    try:
        options = (
            f"--gpu-architecture={architecture}", "--std=c++20", "--device-as-default-execution-space",
            "--ptxas-options=-v", "--no-source-include",
        )  # fmt: skip
        packed = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = library().nvrtcCompileProgram(program, ctypes.c_int(len(options)), packed)
        log = _text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program).decode(errors="replace")
        if status:
            raise CompileError(f"NVRTC {version()} for {architecture}: {_error(status)}\n{log.strip()}")
        kind = "PTX" if ptx else "CUBIN"
        return _text(f"nvrtcGet{kind}Size", f"nvrtcGet{kind}", program), log
    finally:
        library().nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: str, get: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of, program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get, program, buffer)
    return buffer.raw[: size.value].rstrip(b"\0") if get.endswith("Log") else buffer.raw[: size.value]


def _check(function: str, *arguments: object) -> None:
    status = getattr(library(), function)(*arguments)
    if status:
        raise CompileError(f"{function}: {_error(status)}")


def _error(status: int) -> str:
    return str(library().nvrtcGetErrorString(status).decode())


def _cubin(image: bytes, entry: str, log: str) -> Cubin:
    """Resources as the assembler reports them, one kernel a source."""
    used = re.search(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    shared = re.search(r"(\d+) bytes smem", log)
    if used is None:
        raise CompileError(f"the assembler's report of {entry} has no registers in it:\n{log.strip()}")
    return Cubin(image, entry, int(used.group(1)), sum(map(int, spills)), int(shared.group(1)) if shared else 0)


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)

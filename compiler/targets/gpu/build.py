"""The build step: generated kernels to machine code of one architecture, in worker processes, through a cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echoc.compiler.targets.cpu.build import KERNELS, Progress, cache_folder
from echoc.compiler.targets.cuda import nvrtc
from echoc.compiler.targets.gpu import limits
from echoc.compiler.targets.gpu.kernel import Argument, Kernel
from echoc.compiler.targets.gpu.levels import Level
from echoc.errors import CompileError

POINTERS = {
    "f64": "*fp64", "f32": "*fp32", "f16": "*fp16", "bf16": "*bf16", "i64": "*i64", "i32": "*i32", "i16": "*i16",
    "i8": "*i8", "u8": "*u8",
}  # fmt: skip
BACKENDS = {"cuda": "cuda", "rocm": "hip"}
_IMPORT = re.compile(r"^from echoc\.kernels\.triton(?:\.(\w+))? import (.*)$", re.MULTILINE)
LOG = "stderr.txt"
VERSION = "1"  # of what a worker answers


@dataclass(frozen=True)
class Binary:
    """Machine code of one kernel, what a launch of it must know, and what it takes. `spills` are bytes (ROCm:
    registers); of ROCm alone are `scalar_registers` and the lanes of a `wavefront`. `boxes` are of each tensor map that
    it takes: rows, columns and bytes of swizzling of what one copy brings."""

    image: bytes
    entry: str
    threads: int
    shared_bytes: int
    extra_pointers: int
    registers: int
    spills: int
    num_stages: int
    scalar_registers: int = 0
    wavefront: int = 0
    boxes: tuple[tuple[int, int, int], ...] = ()

    def facts(self) -> dict[str, Any]:
        """All but the image."""
        return {k: v for k, v in asdict(self).items() if k != "image" and (k != "boxes" or v)}


def check_tools() -> str:
    """Triton's version; CompileError where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise CompileError("GPU kernels are compiled by Triton, which is not installed: pip install 'echoc[gpu]'")
    return importlib.metadata.version("triton")


def device_functions(source: str) -> str:
    """A digest of the files of device functions that a kernel calls, directly or through others."""
    files: dict[str, str] = {}
    texts = [source]
    while texts:
        for module, names in _IMPORT.findall(texts.pop()):
            for name in [module] if module else names.replace(" ", "").split(","):
                path = KERNELS / "triton" / f"{name}.py"
                if name not in files and path.is_file():
                    files[name] = path.read_text()
                    texts.append(files[name])
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def build_kernels(kernels: Mapping[str, Kernel], level: Level, progress: Progress | None = None) -> dict[str, Binary]:
    """The machine code of every kernel, by name.

    Args:
        progress: told (stage, done, total).
    Raises: CompileError when Triton is missing, rejects a kernel, or a kernel needs more than the architecture has.
    """
    check_tools()
    folder = cache_folder()
    out: dict[str, Binary] = {}
    with _workers(folder) as workers, ThreadPoolExecutor(workers.count) as pool:
        # the largest first: the others fill the time that they take
        order = sorted(kernels, key=lambda n: (kernels[n].family == "rows", n))
        futures = {name: pool.submit(_kernel, kernels[name], level, folder, workers) for name in order}
        try:
            for name, future in futures.items():
                out[name] = future.result()
                if progress:
                    progress("compile kernels", len(out), len(kernels))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out


class _Workers:
    """Worker processes, started when first needed; each takes one job at a time."""

    def __init__(self, folder: Path) -> None:
        self.count = max(1, os.cpu_count() or 1)
        self.folder = folder
        self.idle: queue.SimpleQueue[subprocess.Popen[str] | None] = queue.SimpleQueue()
        self.all: list[subprocess.Popen[str]] = []
        for _ in range(self.count):
            self.idle.put(None)

    def compile(self, job: dict[str, Any]) -> dict[str, Any]:
        worker = self.idle.get()
        try:
            if worker is None or worker.poll() is not None:
                worker = self.start()
            assert worker.stdin is not None and worker.stdout is not None
            print(json.dumps(job), file=worker.stdin, flush=True)
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            self.idle.put(worker)
        if not line:
            assert worker is not None
            return {"error": f"the compiler died: {self.last_words(worker)}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self) -> subprocess.Popen[str]:
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        command = [sys.executable, "-m", "echoc.compiler.targets.gpu.worker", str(scratch)]
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        pipe = subprocess.PIPE
        with (scratch / LOG).open("w") as log:
            worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)
        self.all.append(worker)
        return worker

    @staticmethod
    def last_words(worker: subprocess.Popen[str]) -> str:
        """How a worker ended, and what it said."""
        code = worker.wait()
        assert isinstance(worker.args, list)
        said = (Path(str(worker.args[-1])) / LOG).read_text(errors="replace").strip()
        return f"exit code {code}\n{said[-1000:]}"


@contextmanager
def _workers(folder: Path) -> Iterator[_Workers]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        workers = _Workers(Path(scratch))
        try:
            yield workers
        finally:
            for worker in workers.all:
                worker.kill()
            for worker in workers.all:
                worker.wait()


def _kernel(kernel: Kernel, level: Level, folder: Path, workers: _Workers) -> Binary:
    """One kernel, with as many stages as the shared memory holds."""
    if kernel.language == "cuda":
        built = nvrtc.build(kernel.source, kernel.name, level.name, folder)
        shared = int(kernel.schedule["shared_bytes"]) + built.shared_bytes
        streamed = Binary(built.image, kernel.name, kernel.num_warps * 32, shared, 0, built.registers, built.spills, 1)
        limits.check(kernel.name, streamed, level)
        return streamed
    stages = kernel.num_stages
    while True:
        found = _compiled(kernel, stages, level, folder, workers)
        if found.shared_bytes <= level.shared_bytes or stages == 1:
            limits.check(kernel.name, found, level)
            return found
        stages -= 1


def _compiled(kernel: Kernel, stages: int, level: Level, folder: Path, workers: _Workers) -> Binary:
    """One kernel from the cache or a worker."""
    signature = {a.name: triton_type(a) for a in kernel.arguments}
    signature |= {f"size{i}": "i32" for i in range(len(kernel.symbols))}
    job = {
        "name": kernel.name, "source": kernel.source, "signature": signature, "warp": level.device.warp,
        "backend": BACKENDS[level.device.vendor], "capability": level.capability, "num_warps": kernel.num_warps,
        "num_stages": stages,
    }  # fmt: skip
    key = hashlib.sha256(
        "\0".join((json.dumps(job), device_functions(kernel.source), check_tools(), VERSION)).encode()
    ).hexdigest()
    image, facts = (folder / f"{key[:32]}.{kind}" for kind in (level.suffix, "json"))
    if not (image.exists() and facts.exists()):
        written = workers.folder / f"{key[:32]}.{level.suffix}"
        answer = workers.compile(job | {"image": str(written)})
        if "error" in answer:
            raise CompileError(f"Triton failed on kernel {kernel.name} for {level.name}: {answer['error'][:2000]}")
        written.replace(image)
        draft = workers.folder / f"{key[:32]}.json"
        draft.write_text(json.dumps(answer))
        draft.replace(facts)
    found = json.loads(facts.read_text())
    fields = ("entry", "threads", "shared_bytes", "extra_pointers", "registers", "spills")
    rocm = {f: found[f] for f in ("scalar_registers", "wavefront") if f in found}
    boxes = tuple((rows, columns, swizzle) for rows, columns, swizzle in found.get("boxes", ()))
    return Binary(image=image.read_bytes(), num_stages=stages, boxes=boxes, **{f: found[f] for f in fields}, **rocm)


def triton_type(argument: Argument) -> str:
    """What Triton calls the type of an argument."""
    pointer = POINTERS[argument.element]
    if argument.matrix is None:
        return pointer
    return f"tensordesc<{pointer[1:]}[{', '.join(map(str, argument.matrix.box))}]>"

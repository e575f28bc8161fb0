"""A language model whose logits depend on every byte of its paged state, in numpy and as a hand-made artifact.

Each token leaves a 64-bit word in its page; a row's logits are a hash of the sum of all words of its sequence up to
the row's position, read through the block table. A page shared too long, copied too late or freed too early changes
the output.
"""

import hashlib
import json
import platform
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 97
CONTEXT = 512
PAGE_SIZE = 4

CPP = """
#include <cstdint>
#include "kernels/cpu/abi.h"
namespace {
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
constexpr int64_t kPage = 4, kVocab = 97;
}
// args: state, tokens, positions, sequences, block_table. dims: T R B M
ECHOC_EXPORT void toy_append(const echoc::Call* c) {
  auto* pages = static_cast<uint64_t*>(c->args[0]);
  auto* token = static_cast<const int32_t*>(c->args[1]);
  auto* pos = static_cast<const int32_t*>(c->args[2]);
  auto* seq = static_cast<const int32_t*>(c->args[3]);
  auto* table = static_cast<const int32_t*>(c->args[4]);
  auto [begin, end] = echoc::share(c->dims[0], c->tid, c->nthreads);
  for (int64_t t = begin; t < end; ++t) {
    int64_t page = table[seq[t] * c->dims[3] + pos[t] / kPage];
    pages[page * kPage + pos[t] % kPage] = mix((static_cast<uint64_t>(pos[t]) << 32) + token[t] + 1);
  }
}
// args: state, positions, sequences, rows, block_table, arena sums u64 [R]
ECHOC_EXPORT void toy_read(const echoc::Call* c) {
  auto* pages = static_cast<const uint64_t*>(c->args[0]);
  auto* pos = static_cast<const int32_t*>(c->args[1]);
  auto* seq = static_cast<const int32_t*>(c->args[2]);
  auto* rows = static_cast<const int32_t*>(c->args[3]);
  auto* table = static_cast<const int32_t*>(c->args[4]);
  auto* sums = static_cast<uint64_t*>(c->args[5]);
  auto [begin, end] = echoc::share(c->dims[1], c->tid, c->nthreads);
  for (int64_t r = begin; r < end; ++r) {
    uint64_t sum = 0;
    for (int64_t p = 0; p <= pos[rows[r]]; ++p) {
      sum += pages[table[seq[rows[r]] * c->dims[3] + p / kPage] * kPage + p % kPage];
    }
    sums[r] = sum;
  }
}
// args: arena sums, weight f32 [1], logits f32 [R, V]; shares columns, so that it needs the barrier before it
ECHOC_EXPORT void toy_logits(const echoc::Call* c) {
  auto* sums = static_cast<const uint64_t*>(c->args[0]);
  float scale = *static_cast<const float*>(c->args[1]);
  auto* logits = static_cast<float*>(c->args[2]);
  auto [begin, end] = echoc::share(kVocab, c->tid, c->nthreads);
  for (int64_t r = 0; r < c->dims[1]; ++r) {
    for (int64_t v = begin; v < end; ++v) {
      logits[r * kVocab + v] = static_cast<float>(mix(sums[r] + v) >> 40) * scale;
    }
  }
}
"""

SCALE = np.float32(8.0 / (1 << 24))


def mix(x: Any) -> Any:
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def words(tokens: Any, positions: Any) -> Any:
    return mix((np.asarray(positions, np.uint64) << np.uint64(32)) + np.asarray(tokens, np.uint64) + np.uint64(1))


def logits_of_sum(total: Any) -> Any:
    return (mix(np.uint64(total) + np.arange(VOCAB_SIZE, dtype=np.uint64)) >> np.uint64(40)).astype(np.float32) * SCALE


def expected_logits(tokens: Sequence[int]) -> Any:
    """Logits after `tokens`, without any pages."""
    with np.errstate(over="ignore"):
        return logits_of_sum(words(tokens, np.arange(len(tokens))).sum(dtype=np.uint64))


def expected_greedy(prompt: Sequence[int], count: int, stop: Sequence[int] = ()) -> list[int]:
    """Greedy continuation without any pages, ending behind the first token of `stop`."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and (len(tokens) == len(prompt) or tokens[-1] not in stop):
        tokens.append(int(np.argmax(expected_logits(tokens))))
    return tokens[len(prompt) :]


class ToyStepper:
    """The model in numpy. Pages begin with noise, so that reading an unwritten slot shows."""

    def __init__(
        self,
        num_pages: int,
        *,
        page_size: int = PAGE_SIZE,
        max_tokens: int = 64,
        max_rows: int = 32,
        context: int = CONTEXT,
    ) -> None:
        self.vocab_size, self.context_length, self.page_size = VOCAB_SIZE, CONTEXT, page_size
        self.max_tokens, self.max_rows = max_tokens, max_rows
        self.pages = np.random.default_rng(1).integers(0, 1 << 63, (num_pages, page_size), dtype=np.uint64)
        self.steps: list[tuple[int, int]] = []
        self.fail_at: int | None = None
        self.poison: set[int] = set()  # a sequence with one of these tokens gets NaN logits

    def step(self, tokens: Any, positions: Any, sequences: Any, rows: Any, block_table: Any) -> Any:
        if self.fail_at == len(self.steps):
            self.steps.append((0, 0))
            raise OSError("the device went away")
        assert len(tokens) == len(positions) == len(sequences) <= self.max_tokens
        assert 1 <= len(rows) <= self.max_rows
        for array in (tokens, positions, sequences, rows, block_table):
            assert array.dtype == np.int32
        self.steps.append((len(tokens), len(rows)))
        where = block_table[sequences, positions // self.page_size]
        self.pages[where, positions % self.page_size] = words(tokens, positions)
        logits = np.empty((len(rows), VOCAB_SIZE), np.float32)
        for i, row in enumerate(rows):
            length = positions[row] + 1
            table = block_table[sequences[row], : -(-length // self.page_size)]
            with np.errstate(over="ignore"):
                logits[i] = logits_of_sum(self.pages[table].reshape(-1)[:length].sum(dtype=np.uint64))
            if self.poison & set(tokens[sequences == sequences[row]].tolist()):
                logits[i, 3] = np.nan
        return logits

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, destination in pairs:
            self.pages[destination] = self.pages[source]


def manifest(**changes: Any) -> dict[str, Any]:
    def launches(sums: int) -> list[dict[str, Any]]:
        ports = {
            name: ["port", i] for i, name in enumerate(("tokens", "positions", "sequences", "rows", "table", "logits"))
        }
        append = [["state", 0], ports["tokens"], ports["positions"], ports["sequences"], ports["table"]]
        read = [["state", 0], ports["positions"], ports["sequences"], ports["rows"], ports["table"], ["arena", sums]]
        return [
            {"kernel": "toy_append", "barrier": False, "args": append},
            {"kernel": "toy_read", "barrier": True, "args": read},
            {"kernel": "toy_logits", "barrier": True, "args": [["arena", sums], ["weight", 0], ports["logits"]]},
        ]

    variants = [
        {
            "rule": "step",
            "max_tokens": tokens,
            "max_rows": rows,
            "deterministic": deterministic,
            "arena_bytes": 64 + 8 * rows,
            "scratch_bytes": 0,
            "launches": launches(64),
        }
        for tokens, rows in ((1, 1), (16, 16), (64, 32))
        for deterministic in (False, True)
    ]
    return {
        "schema": 2,
        "echoc": "0.1.0",
        "source": {},
        "tools": {},
        "target": {"device": "cpu", "level": "native", "features": []},
        "membrane": {"name": "toy", "states": ["words"], "rules": ["step"], "ports": [], "children": []},
        "symbols": [
            {"name": "T", "low": 1, "high": 64},
            {"name": "R", "low": 1, "high": 32},
            {"name": "B", "low": 1, "high": 64},
            {"name": "M", "low": 1, "high": CONTEXT // PAGE_SIZE},
        ],
        "states": [{"name": "words", "kind": "pages", "page_size": PAGE_SIZE, "bytes_per_page": 8 * PAGE_SIZE}],
        "ports": [
            {"name": "tokens", "direction": "in", "dtype": "i32", "shape": ["T"]},
            {"name": "positions", "direction": "in", "dtype": "i32", "shape": ["T"]},
            {"name": "sequences", "direction": "in", "dtype": "i32", "shape": ["T"]},
            {"name": "rows", "direction": "in", "dtype": "i32", "shape": ["R"]},
            {"name": "block_table", "direction": "in", "dtype": "i32", "shape": ["B", "M"]},
            {"name": "logits", "direction": "out", "dtype": "f32", "shape": ["R", VOCAB_SIZE]},
        ],
        "weights": [{"name": "p0", "member": "weights.safetensors", "format": "f32", "shape": [1, 1], "nbytes": 4}],
        "random_weights": None,
        "kernels": {"library": "kernels/cpu.so", "sources": {}},
        "variants": variants,
        "model": {"vocab_size": VOCAB_SIZE, "context_length": CONTEXT, "eos_token_ids": [0], "bos_token_id": 1},
        "page_size": PAGE_SIZE,
        "hashes": {},
    } | changes


def write_artifact(path: Path, description: dict[str, Any], members: dict[str, bytes]) -> Path:
    """A zip of stored members whose data begin at multiples of 64."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    text = json.dumps(description | {"hashes": hashes}).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"manifest.json": text, **members}.items():
            info = zipfile.ZipInfo(name)
            begin = archive.fp.tell() + 30 + len(name.encode())
            info.extra = b"EC" + (-(begin + 4) % 64).to_bytes(2, "little") + bytes(-(begin + 4) % 64)
            archive.writestr(info, data)
    return path


def weights_member(tensors: dict[str, bytes]) -> bytes:
    """A safetensors file of u8 tensors padded to 64 bytes, data 64-aligned."""
    header: dict[str, Any] = {}
    body = b""
    for name, data in tensors.items():
        data += bytes(-len(data) % 64)
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text + body


def build_library(folder: Path, source: str = CPP, compiler: str = "g++") -> bytes:
    root = Path(__file__).resolve().parents[2]
    (folder / "toy.cpp").write_text(source)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{root}", "toy.cpp", "-o", "toy.so"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "toy.so").read_bytes()


def build_artifact(folder: Path, **members: bytes) -> Path:
    contents = {"weights.safetensors": weights_member({"p0": SCALE.tobytes()}), "kernels/cpu.so": build_library(folder)}
    target = {"device": "cpu", "level": "native", "features": [], "machine": platform.machine()}
    return write_artifact(folder / "toy.echo", manifest(target=target), contents | members)

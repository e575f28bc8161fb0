"""The toy model as an artifact for GPUs, and a driver over host memory that runs its kernels. Fixtures of the tests."""

import ctypes
import gc
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toy_model
from toy_model import SCALE, VOCAB_SIZE, weights_member, write_artifact

HERE = Path(__file__).resolve().parent
MACHINES = {"cuda": 190, "rocm": 224}  # e_machine of their ELF files
LEVELS = {"cuda": "sm_90a", "rocm": "gfx942"}

KERNELS = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
namespace {
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
constexpr int64_t kPage = 4, kVocab = 97;
template <typename T> T get(void** p, int i) { T v; std::memcpy(&v, p[i], sizeof v); return v; }
}
#define KERNEL(name, ...) \\
  extern "C" const int name##_sizes[] = {__VA_ARGS__, 0}; \\
  extern "C" int name(void** p, const unsigned* grid, unsigned threads)
// state, tokens, positions, sequences, table; T, M; null
KERNEL(toy_append, 8, 8, 8, 8, 8, 4, 4, 8) {
  auto* pages = get<uint64_t*>(p, 0);
  auto* token = get<int32_t*>(p, 1); auto* pos = get<int32_t*>(p, 2); auto* seq = get<int32_t*>(p, 3);
  auto* table = get<int32_t*>(p, 4);
  const int T = get<int32_t>(p, 5), M = get<int32_t>(p, 6);
  if (get<void*>(p, 7) || threads != 64 || static_cast<int>(grid[0]) != (T + 3) / 4) return 719;
  for (int t = 0; t < T; ++t) {
    int64_t page = table[seq[t] * M + pos[t] / kPage];
    pages[page * kPage + pos[t] % kPage] = mix((static_cast<uint64_t>(pos[t]) << 32) + token[t] + 1);
  }
  return 0;
}
// state, positions, sequences, rows, table, sums; M; null
KERNEL(toy_read, 8, 8, 8, 8, 8, 8, 4, 8) {
  auto* pages = get<uint64_t*>(p, 0);
  auto* pos = get<int32_t*>(p, 1); auto* seq = get<int32_t*>(p, 2); auto* rows = get<int32_t*>(p, 3);
  auto* table = get<int32_t*>(p, 4);
  auto* sums = get<uint64_t*>(p, 5);
  const int M = get<int32_t>(p, 6);
  for (unsigned r = 0; r < grid[0]; ++r) {
    uint64_t sum = 0;
    for (int64_t i = 0; i <= pos[rows[r]]; ++i) sum += pages[table[seq[rows[r]] * M + i / kPage] * kPage + i % kPage];
    sums[r] = sum;
  }
  return 0;
}
// sums, weight, logits; null
KERNEL(toy_logits, 8, 8, 8, 8) {
  auto* sums = get<uint64_t*>(p, 0);
  float scale = *get<float*>(p, 1);
  auto* logits = get<float*>(p, 2);
  if (grid[0] != (kVocab + 31) / 32) return 719;
  for (unsigned r = 0; r < grid[1]; ++r)
    for (int64_t v = 0; v < kVocab; ++v) logits[r * kVocab + v] = static_cast<float>(mix(sums[r] + v) >> 40) * scale;
  return 0;
}
// the same with a tensor map of the sums, as the driver of the tests makes it, and its sizes and strides
KERNEL(toy_mapped, 128, 4, 4, 8, 8, 8, 8, 8) {
  struct { uint64_t* sums; uint64_t sizes[2], row_bytes; unsigned box[2]; int type, swizzle; } map;
  std::memcpy(&map, p[0], sizeof map);
  if (map.sizes[0] != 16 || map.sizes[1] != 1 || map.row_bytes != 16 || map.type != 0) return 719;
  if (map.box[0] != 16 || map.box[1] != 8 || map.swizzle != 2) return 719;
  if (get<int32_t>(p, 1) != 1 || get<int32_t>(p, 2) != 16 || get<int64_t>(p, 3) != 16 || get<int64_t>(p, 4) != 1)
    return 719;
  void* rest[] = {&map.sums, p[5], p[6], p[7]};
  return toy_logits(rest, grid, threads);
}
// logits, peaks, places; null: the highest logit in each quarter of a row
KERNEL(toy_peaks, 8, 8, 8, 8) {
  auto* logits = get<float*>(p, 0); auto* peaks = get<float*>(p, 1); auto* places = get<int32_t*>(p, 2);
  if (grid[1] != 4) return 719;
  for (unsigned r = 0; r < grid[0]; ++r)
    for (int64_t part = 0; part < 4; ++part) {
      const float* begin = logits + r * kVocab + 25 * part;
      const float* best = std::max_element(begin, begin + std::min<int64_t>(25, kVocab - 25 * part));
      peaks[r * 4 + part] = *best;
      places[r * 4 + part] = static_cast<int32_t>(best - logits - r * kVocab);
    }
  return 0;
}
// logits, peaks, places, records, tokens, positions, sampled; feed; null: what compiler/targets/gpu/sample.py says
KERNEL(toy_sample, 8, 8, 8, 8, 8, 8, 8, 4, 8) {
  auto* logits = get<float*>(p, 0); auto* peaks = get<float*>(p, 1); auto* places = get<int32_t*>(p, 2);
  auto* records = get<int32_t*>(p, 3);
  auto* tokens = get<int32_t*>(p, 4); auto* positions = get<int32_t*>(p, 5); auto* sampled = get<int32_t*>(p, 6);
  const int feed = get<int32_t>(p, 7);
  for (unsigned d = 0; d < grid[0]; ++d) {
    const int32_t* asked = records + 16 * d;
    float number[3];  // scale, top_p, floor
    std::memcpy(number, asked + 1, 4);
    std::memcpy(number + 1, asked + 3, 8);
    const int64_t row = asked[0];
    const int64_t best = std::max_element(peaks + row * 4, peaks + row * 4 + 4) - peaks;
    int32_t token = places[best];
    if (number[0] > 0) {
      const uint32_t position = asked[8] + (feed ? positions[d] : 0);
      uint64_t c[4] = {position, 0, static_cast<uint32_t>(asked[7]), 0};
      uint32_t k[2] = {static_cast<uint32_t>(asked[5]), static_cast<uint32_t>(asked[6])};
      for (int round = 0; round < 10; ++round) {
        const uint64_t a = 0xD2511F53 * c[0], b = 0xCD9E8D57 * c[2];
        c[0] = (b >> 32) ^ c[1] ^ k[0]; c[1] = b & 0xFFFFFFFF;
        c[2] = (a >> 32) ^ c[3] ^ k[1]; c[3] = a & 0xFFFFFFFF;
        k[0] += 0x9E3779B9; k[1] += 0xBB67AE85;
      }
      const double u = static_cast<double>((c[0] << 32 | c[1]) >> 11) * 0x1p-53;
      std::vector<std::pair<double, int32_t>> kept;
      for (int32_t v = 0; v < kVocab; ++v) {
        const float z = (logits[row * kVocab + v] - peaks[best]) * number[0];
        kept.emplace_back(z >= number[2] ? std::exp(z) : 0.0f, v);
      }
      const bool limited = asked[2] > 0 && asked[2] < kVocab;
      if (limited || number[1] < 1) {
        std::stable_sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.first > b.first; });
        if (limited) kept.resize(asked[2]);
        double mass = 0, sum = 0;
        for (auto& [weight, v] : kept) mass += weight;
        size_t count = 0;
        while (count < kept.size() && (count == 0 || sum < number[1] * mass)) sum += kept[count++].first;
        kept.resize(count);
      }
      double mass = 0, sum = 0;
      for (auto& [weight, v] : kept) mass += weight;
      for (auto& [weight, v] : kept) {
        if (weight > 0) token = v;
        if ((sum += weight) > u * mass) break;
      }
    }
    sampled[d] = token;
    if (feed) {
      tokens[d] = token;
      positions[d] += 1;
    }
  }
  return 0;
}
// place; seed low, seed high, stream, source, std, N, K; null: what a fill is told and its grid, where the slab begins
KERNEL(toy_fill, 8, 4, 4, 4, 4, 4, 4, 4, 8) {
  auto* out = get<char*>(p, 0);
  for (int i = 0; i < 7; ++i) std::memcpy(out + 4 * i, p[i + 1], 4);
  std::memcpy(out + 28, grid, 12);
  return 0;
}
// fails as CUDA_ERROR_ILLEGAL_ADDRESS; the arguments are toy_read's
KERNEL(toy_fault, 8, 8, 8, 8, 8, 8, 4, 8) { return 700; }
"""


class Driver:
    """The built driver library, and what tests ask of it."""

    def __init__(self, folder: Path, vendor: str) -> None:
        self.vendor, self.path = vendor, folder / f"fake_{vendor}.so"
        flags = ["-DFAKE_ROCM"] if vendor == "rocm" else []
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", *flags, str(HERE / "gpu_fake_driver.cpp"), "-o"]
        subprocess.run([*command, str(self.path), "-ldl"], check=True)
        self._library = ctypes.CDLL(str(self.path))
        self._library.fake_calls.restype = ctypes.c_char_p
        self._library.fake_used.restype = ctypes.c_long

    def name(self, cuda: str) -> str:
        """The vendor's name of a function of CUDA's."""
        table = (HERE / "gpu_fake_driver.cpp").read_text()
        return cuda if self.vendor == "cuda" else re.search(rf"API\({cuda}, (\w+)\)", table)[1]  # type: ignore[index]

    def set(self, key: str, value: int) -> None:
        self._library.fake_set(key.encode(), ctypes.c_long(value))

    def fail(self, function: str, status: int, after: int = 0) -> None:
        """The next call of a function (by CUDA's name) after `after` others comes to `status`."""
        self._library.fake_fail(self.name(function).encode(), status, after)

    def reset(self) -> None:
        self._library.fake_reset()

    def calls(self) -> list[str]:
        """What the device did since the last question."""
        return str(self._library.fake_calls().decode()).splitlines()

    @property
    def in_use(self) -> int:
        """0 when nothing is held: no memory of the device, page-locked memory or stream."""
        gc.collect()  # the traceback of an expected error
        return int(self._library.fake_used())


def build_kernels(folder: Path) -> bytes:
    """A shared object with the toy model's kernels."""
    (folder / "kernels.cpp").write_text(KERNELS)
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "kernels.so").read_bytes()


def as_image(kernels: bytes, vendor: str) -> bytes:
    """The same as an ELF file of the vendor's machine."""
    return kernels[:18] + MACHINES[vendor].to_bytes(2, "little") + kernels[20:]


def axis(symbol: int | None, size: int, tile: int = 1) -> list[Any]:
    """size * symbol (or size alone) in tiles."""
    return [[[size, [] if symbol is None else [symbol]]], tile]


def gpu_manifest(vendor: str, **changes: Any) -> dict[str, Any]:
    """The toy model's manifest with launches for a GPU. Symbols: T R B M."""
    description = toy_model.manifest()
    binaries = {
        name: {"member": "kernels/toy.bin", "entry": name, "threads": 64, "shared_bytes": 0, "extra_pointers": 1}
        for name in (
            "toy_append",
            "toy_read",
            "toy_logits",
            "toy_peaks",
            "toy_sample",
            "toy_fill",
            "toy_fault",
            "toy_mapped",
        )
    }
    binaries["toy_mapped"]["boxes"] = [[8, 16, 64]]
    binaries["toy_logits"]["shared_bytes"] = 60000
    for variant in description["variants"]:
        append, read, logits = variant["launches"]
        append |= {"symbols": [0, 3], "grid": [axis(0, 1, 4)], "dependent": True}
        read |= {"symbols": [3], "grid": [axis(1, 1)], "dependent": True}
        logits |= {"symbols": [], "grid": [axis(None, VOCAB_SIZE, 32), axis(1, 1)], "dependent": False}
    description |= {
        "target": {"device": vendor, "level": LEVELS[vendor]},
        "kernels": {
            "binaries": binaries,
            "sources": {},
            "sample": {"peaks": "toy_peaks", "sample": "toy_sample", "parts": 4, "dependent": True},
        },
    }
    return description | changes


def build_gpu_artifact(path: Path, description: dict[str, Any], kernels: bytes, **members: bytes) -> Path:
    image = as_image(kernels, description["target"]["device"])
    contents = {"weights.safetensors": weights_member({"p0": SCALE.tobytes()}), "kernels/toy.bin": image}
    return write_artifact(path, description, contents | members)


def runs(calls: Sequence[str]) -> list[str]:
    """The kernels that ran, by name."""
    return [call.split()[1] for call in calls if call.startswith("run ")]

"""kernels/cpu/attend.h against a float64 oracle, and its bitwise promises."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_levels import build, levels
from numpy.typing import NDArray

from echoc.compiler.ir.ops.entries import GREATEST, held, quantise
from echoc.compiler.ir.types import DType
from echoc.compiler.targets.cpu import kernels, lower

Array = NDArray[Any]
PAGE = 16

SOURCE = r"""
#include "attend.h"
using namespace echoc;

struct Args {
    AttendShape shape;
    const float* q; int64_t ldq; float* out; void* k; void* v; const float* sinks; int64_t T;
    const int32_t* seq; const int32_t* pos; const int32_t* table; int64_t max_blocks;
    const float* extra; std::byte* scratch; AttendWorkspace workspace; int32_t deterministic, threads, functor;
};

struct Bias {
    const float* slopes;
    int kind;
    float operator()(float s, int head, int64_t qpos, int64_t kpos) const {
        const float sloped = s + slopes[head] * static_cast<float>(kpos - qpos);
        const float thinned = kpos % 3 == 1 && kpos != qpos ? -m::kInfinity : s;  // hides every third key but its own
        return kind == 0 ? s : kind == 1 ? sloped : thinned;
    }
};

template <class KV>
void one(const Args& a, int tid) {
    const Call call{nullptr, nullptr, tid, a.threads, a.scratch};
    auto go = [&](auto score) {
        attend<KV>(call, a.shape, a.q, a.ldq, a.out, a.k, a.v, a.sinks, a.T, a.seq, a.pos, a.table, a.max_blocks,
                   a.deterministic != 0, score, a.workspace);
    };
    // The other types do without, which halves the compiler's work.
    if constexpr (std::is_same_v<KV, bf16_t> || std::is_same_v<KV, i8_t>) {
        if (a.functor == 0) return go(PlainScore{});
    }
    go(Bias{a.extra, a.functor});
}

#define EACH(NAME, KV)                                                                                             \
    extern "C" ECHOC_EXPORT void attend_##NAME(const Args* a) {                                                    \
        for (int tid = 0; tid < a->threads; ++tid) one<KV>(*a, tid);                                               \
        for (int tid = 0; tid < a->threads; ++tid) {                                                               \
            const Call call{nullptr, nullptr, tid, a->threads, a->scratch};                                        \
            attend_merge(call, a->shape, a->out, a->sinks, a->T, a->seq, a->pos, a->workspace.data);               \
        }                                                                                                          \
    }                                                                                                              \
    extern "C" ECHOC_EXPORT void append_##NAME(const Args* a, const float* k, const float* v) {                    \
        const AttendShape& s = a->shape;                                                                           \
        for (int tid = 0; tid < a->threads; ++tid) {                                                               \
            const Call call{nullptr, nullptr, tid, a->threads, a->scratch};                                        \
            append_k<KV>(call, a->k, k, s.kv_heads * s.head_dim, a->T, s.kv_heads, s.head_dim, a->seq, a->pos,     \
                         a->table, a->max_blocks);                                                                 \
            append_v<KV>(call, a->v, v, s.kv_heads * s.v_head_dim, a->T, s.kv_heads, s.v_head_dim, a->seq, a->pos, \
                         a->table, a->max_blocks);                                                                 \
        }                                                                                                          \
    }
EACH(f32, float)
EACH(bf16, bf16_t)
EACH(f16, f16_t)
EACH(i8, i8_t)
EACH(f8, f8_t)

extern "C" ECHOC_EXPORT int64_t scratch_bytes(int d, int dv) { return attend_scratch_bytes(d, dv); }
extern "C" ECHOC_EXPORT int64_t workspace_bytes(int dv, int threads) { return attend_workspace_bytes(dv, threads); }
"""


class ShapeC(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("heads", "kv_heads", "head_dim", "v_head_dim")] + [
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int),
        ("causal", ctypes.c_bool),
    ]


class ArgsC(ctypes.Structure):
    _fields_ = [
        ("shape", ShapeC),
        ("q", ctypes.c_void_p),
        ("ldq", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("T", ctypes.c_int64),
        ("seq", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("max_blocks", ctypes.c_int64),
        ("extra", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
        ("deterministic", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("functor", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Case:
    """One attention problem: per sequence, cached tokens and new ones."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    v_head_dim: int = 64
    contexts: tuple[tuple[int, int], ...] = ((0, 5),)  # (cached, new)
    dtype: str = "f32"
    softcap: float = 0.0
    window: int = 0
    causal: bool = True
    sinks: bool = False
    functor: int = 0
    threads: int = 1
    deterministic: bool = True
    workspace: bool = False
    seed: int = 0


def rounded(x: Array, dtype: str) -> Array:
    """x [..., D] as the storage type keeps it."""
    if dtype in ("i8", "f8"):
        return held(x, DType(dtype))
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = x.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return x


@dataclass
class Problem:
    """Random tensors of a case; sequence s holds contexts[s] = cached + new tokens."""

    case: Case
    q: list[Array] = field(default_factory=list)
    k: list[Array] = field(default_factory=list)
    v: list[Array] = field(default_factory=list)
    sinks: Array | None = None
    slopes: Array | None = None

    def __post_init__(self) -> None:
        c, rng = self.case, np.random.default_rng(self.case.seed)
        for cached, new in c.contexts:
            n = cached + new
            q = rng.standard_normal((n, c.heads, c.head_dim), dtype=np.float32) * 2
            self.q.append(rounded(q, "bf16" if c.dtype in ("i8", "f8") else c.dtype))
            self.k.append(rng.standard_normal((n, c.kv_heads, c.head_dim), dtype=np.float32))
            self.v.append(rng.standard_normal((n, c.kv_heads, c.v_head_dim), dtype=np.float32))
        self.sinks = rng.standard_normal(c.heads).astype(np.float32) * 3 if c.sinks else None
        self.slopes = (2.0 ** -np.arange(1, c.heads + 1)).astype(np.float32)

    def oracle(self) -> Array:
        """The new tokens' outputs in float64, [sum of new, heads, v_head_dim]."""
        c, parts = self.case, []
        for (cached, new), q, k, v in zip(c.contexts, self.q, self.k, self.v, strict=True):
            kk = np.repeat(rounded(k, c.dtype).astype(np.float64), c.heads // c.kv_heads, axis=1)
            vv = np.repeat(rounded(v, c.dtype).astype(np.float64), c.heads // c.kv_heads, axis=1)
            s = np.einsum("qhd,khd->hqk", q[cached:].astype(np.float64), kk) * float(np.float32(c.head_dim**-0.5))
            if c.softcap:
                s = c.softcap * np.tanh(s / c.softcap)
            qpos, kpos = np.arange(cached, cached + new)[:, None], np.arange(cached + new)[None]
            if c.functor == 1:
                assert self.slopes is not None
                s = s + self.slopes.astype(np.float64)[:, None, None] * (kpos - qpos)
            keep = np.ones((new, cached + new), bool)
            if c.functor == 2:
                keep &= (kpos % 3 != 1) | (kpos == qpos)
            if c.causal:
                keep &= kpos <= qpos
            if c.window:
                keep &= kpos > qpos - c.window
            s = np.where(keep, s, -np.inf)
            if self.sinks is not None:
                s = np.concatenate(
                    [s, np.broadcast_to(self.sinks.astype(np.float64)[:, None, None], (*s.shape[:2], 1))], -1
                )
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            parts.append(np.einsum("hqk,khd->qhd", p[..., : cached + new], vv))
        return np.concatenate(parts)


class Machine:
    """A page pool filled with NaN and the library's view of it."""

    def __init__(self, library: ctypes.CDLL, problem: Problem) -> None:
        c = problem.case
        self.library, self.problem = library, problem
        self.max_blocks = max((cached + new + PAGE - 1) // PAGE for cached, new in c.contexts) + 1
        pages = len(c.contexts) * self.max_blocks + 3
        element, scale = {"f32": (4, 0), "i8": (1, 4), "f8": (1, 4)}.get(c.dtype, (2, 0))
        self.k = np.full(pages * c.kv_heads * (c.head_dim * element + scale) * PAGE, 0xFF, np.uint8)
        self.v = np.full(pages * c.kv_heads * (c.v_head_dim * element + scale) * PAGE, 0xFF, np.uint8)
        order = np.random.default_rng(c.seed + 1).permutation(pages)
        self.table = np.full((len(c.contexts), self.max_blocks), -(10**6), np.int32)  # touching an unused entry crashes
        for i, (cached, new) in enumerate(c.contexts):
            used = (cached + new + PAGE - 1) // PAGE
            self.table[i, :used] = order[i * self.max_blocks : i * self.max_blocks + used]
        library.scratch_bytes.restype = ctypes.c_int64
        self.guard = library.scratch_bytes(c.head_dim, c.v_head_dim)
        raw = np.full(self.guard + 128, 0xFF, np.uint8)
        start = -raw.ctypes.data % 64
        self.scratch = raw[start : start + self.guard + 64]
        library.workspace_bytes.restype = ctypes.c_int64
        self.room = library.workspace_bytes(c.v_head_dim, c.threads) if c.workspace else 0
        self.workspace = np.full(self.room + 64, 0xFF, np.uint8)

    def args(self, tokens: list[tuple[int, int]], q: Array | None, out: Array | None) -> ArgsC:
        c, a = self.problem.case, ArgsC()
        a.shape = ShapeC(c.heads, c.kv_heads, c.head_dim, c.v_head_dim, c.head_dim**-0.5, c.softcap, c.window, c.causal)
        self.seq = np.array([s for s, _ in tokens], np.int32)
        self.pos = np.array([p for _, p in tokens], np.int32)
        a.T, a.seq, a.pos = len(tokens), self.seq.ctypes.data, self.pos.ctypes.data
        a.k, a.v = self.k.ctypes.data, self.v.ctypes.data
        a.table, a.max_blocks = self.table.ctypes.data, self.max_blocks
        a.scratch, a.threads = self.scratch.ctypes.data, c.threads
        a.deterministic, a.functor = c.deterministic, c.functor
        if c.workspace:
            a.workspace, a.workspace_bytes = self.workspace.ctypes.data, self.room
        if q is not None and out is not None:
            a.q, a.ldq, a.out = q.ctypes.data, q.strides[0] // 4, out.ctypes.data
        if self.problem.sinks is not None:
            a.sinks = self.problem.sinks.ctypes.data
        assert self.problem.slopes is not None
        a.extra = self.problem.slopes.ctypes.data
        return a

    def append(self, tokens: list[tuple[int, int]]) -> None:
        k = np.stack([self.problem.k[s][p] for s, p in tokens])
        v = np.stack([self.problem.v[s][p] for s, p in tokens])
        call = getattr(self.library, f"append_{self.problem.case.dtype}")
        call(
            ctypes.byref(self.args(tokens, None, None)), ctypes.c_void_p(k.ctypes.data), ctypes.c_void_p(v.ctypes.data)
        )

    def attend(self, tokens: list[tuple[int, int]]) -> Array:
        c = self.problem.case
        wide = np.full((len(tokens), c.heads * c.head_dim + 7), np.nan, np.float32)  # a row stride of its own
        wide[:, :-7] = np.stack([self.problem.q[s][p] for s, p in tokens]).reshape(len(tokens), -1)
        out = np.full((len(tokens), c.heads, c.v_head_dim), np.nan, np.float32)
        getattr(self.library, f"attend_{c.dtype}")(ctypes.byref(self.args(tokens, wide, out)))
        assert (self.scratch[self.guard :] == 0xFF).all(), "attend wrote past its scratch memory"
        assert (self.workspace[self.room :] == 0xFF).all(), "attend wrote past its workspace"
        return out

    def step(self, tokens: list[tuple[int, int]]) -> Array:
        self.append(tokens)
        return self.attend(tokens)


def prefill(library: ctypes.CDLL, case: Case) -> Array:
    """Cached tokens appended, then the new ones of all sequences in one step."""
    machine = Machine(library, Problem(case))
    cached = [(s, p) for s, (old, _) in enumerate(case.contexts) for p in range(old)]
    if cached:
        machine.append(cached)
    return machine.step([(s, old + i) for s, (old, new) in enumerate(case.contexts) for i in range(new)])


def close(case: Case, found: Array, wanted: Array) -> None:
    """Within f32 rounding; where bf16 dot products may serve, within the bf16 rounding of queries and weights."""
    bound = 4e-6
    if case.dtype in ("bf16", "i8", "f8") and not case.deterministic:
        bound = 3e-3 if case.head_dim in {4, 16, 64, 256} else 8e-3  # the scaled query is exact for these
    assert found.size > 0
    assert np.isfinite(found).all()
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < bound, f"relative error {error:.2e}, at most {bound:.0e} wanted"


@pytest.fixture(scope="module", params=levels("x86-64", "x86-64-v3", "cooperlake", "native"))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("attend")
    force = ("-DECHOC_ATTEND_DOT=1",) if request.param == "cooperlake" else ()  # bf16 products without tiles
    return build(SOURCE, request.param, folder, force)


RAGGED = ((0, 1), (3, 1), (200, 1), (63, 2), (64, 1), (0, 70), (129, 33))
FREE: dict[str, Any] = {"dtype": "bf16", "deterministic": False}  # bf16 dot products and tiles, where they are
NAMED = {
    "decode": Case(contexts=((0, 1), (15, 1), (16, 1), (63, 1), (64, 1), (300, 1))),
    "prefill": Case(contexts=((0, 200),)),
    "chunk": Case(contexts=((100, 77),)),
    "ragged": Case(contexts=RAGGED, threads=3),
    "many heads": Case(heads=12, kv_heads=1, contexts=RAGGED),
    "one head each": Case(heads=5, kv_heads=5, contexts=RAGGED),
    "bf16": Case(contexts=RAGGED, dtype="bf16"),
    "f16": Case(contexts=RAGGED, dtype="f16"),
    "i8": Case(contexts=RAGGED, dtype="i8"),
    "f8": Case(contexts=RAGGED, dtype="f8"),
    "i8, all at once": Case(contexts=RAGGED, window=50, softcap=5.0, sinks=True, functor=2, dtype="i8", threads=2),
    "f8, window below a page": Case(contexts=RAGGED, window=7, dtype="f8", threads=3),
    "odd dims i8": Case(head_dim=33, v_head_dim=21, contexts=RAGGED, dtype="i8"),
    "odd dims f8": Case(head_dim=7, v_head_dim=50, contexts=RAGGED, dtype="f8"),
    "window": Case(contexts=RAGGED, window=40),
    "window of one": Case(contexts=RAGGED, window=1),
    "window below a page": Case(contexts=RAGGED, window=7, dtype="bf16"),
    "soft cap": Case(contexts=RAGGED, softcap=2.0),
    "sinks": Case(contexts=RAGGED, sinks=True),
    "alibi": Case(contexts=RAGGED, functor=1),
    "mask": Case(contexts=RAGGED, functor=2),
    "both ways": Case(contexts=((0, 90), (0, 3), (0, 64)), causal=False),
    "all at once": Case(contexts=RAGGED, window=50, softcap=5.0, sinks=True, functor=2, dtype="bf16", threads=2),
    "odd dims": Case(head_dim=33, v_head_dim=21, contexts=RAGGED),
    "odd dims bf16": Case(head_dim=33, v_head_dim=21, contexts=RAGGED, dtype="bf16"),
    "80": Case(head_dim=80, v_head_dim=80, contexts=RAGGED, dtype="bf16"),
    "192 and 128": Case(head_dim=192, v_head_dim=128, contexts=RAGGED, dtype="bf16"),
    "256": Case(head_dim=256, v_head_dim=256, contexts=RAGGED, dtype="f16", heads=2, kv_heads=1),
    "tiny": Case(head_dim=1, v_head_dim=1, contexts=RAGGED, dtype="bf16"),
    "eight": Case(head_dim=8, v_head_dim=8, heads=8, kv_heads=1, contexts=RAGGED, dtype="bf16"),
    "split": Case(contexts=((1500, 1),), threads=5, deterministic=False, workspace=True),
    "split of a batch": Case(
        contexts=((700, 1), (3, 1), (0, 40), (300, 1)),
        threads=4,
        deterministic=False,
        workspace=True,
        dtype="bf16",
        sinks=True,
        window=450,
    ),
    "split, i8": Case(
        contexts=((900, 1), (70, 1)), threads=5, deterministic=False, workspace=True, dtype="i8", heads=7, kv_heads=1
    ),
    "split of one kv head": Case(
        kv_heads=1,
        heads=12,
        contexts=((900, 1), (70, 1)),
        threads=8,
        deterministic=False,
        workspace=True,
        dtype="f16",
        head_dim=40,
        v_head_dim=24,
    ),
    "dots": Case(contexts=RAGGED, **FREE),
    "dots, many rows": Case(contexts=((0, 300), (40, 90)), heads=8, kv_heads=1, threads=2, **FREE),
    "dots, decode": Case(contexts=((0, 1), (77, 1), (300, 1)), heads=12, kv_heads=1, **FREE),
    "dots, odd": Case(contexts=RAGGED, head_dim=33, v_head_dim=21, sinks=True, **FREE),
    "dots, 80": Case(contexts=RAGGED, head_dim=80, v_head_dim=80, window=40, **FREE),
    "dots, 192 and 128": Case(contexts=RAGGED, head_dim=192, v_head_dim=128, functor=1, **FREE),
    "dots, 16": Case(contexts=RAGGED, head_dim=16, v_head_dim=16, softcap=3.0, functor=2, **FREE),
    "dots, tiny": Case(contexts=RAGGED, head_dim=1, v_head_dim=1, heads=40, kv_heads=1, **FREE),
    "dots, rows of one to eight": Case(
        contexts=((77, 1), (300, 2), (31, 1)), heads=8, kv_heads=2, head_dim=64, v_head_dim=80, softcap=4.0, **FREE
    ),
    "dots, i8": Case(contexts=RAGGED, **(FREE | {"dtype": "i8"})),
    "dots, i8, many rows": Case(
        contexts=((0, 300), (40, 90), (7, 5)), heads=8, kv_heads=1, threads=2, **(FREE | {"dtype": "i8"})
    ),
    "dots, i8, three heads": Case(contexts=((0, 1), (77, 1), (300, 1), (63, 2)), heads=6, **(FREE | {"dtype": "i8"})),
    "dots, i8, 192 and 128": Case(
        contexts=RAGGED, head_dim=192, v_head_dim=128, functor=1, sinks=True, **(FREE | {"dtype": "i8"})
    ),
    "dots, f8": Case(contexts=RAGGED, **(FREE | {"dtype": "f8"})),
    "dots, i8, 80": Case(contexts=RAGGED, head_dim=80, v_head_dim=80, window=40, **(FREE | {"dtype": "i8"})),
    "dots, f8, odd": Case(contexts=RAGGED, head_dim=33, v_head_dim=21, sinks=True, **(FREE | {"dtype": "f8"})),
    "dots, f8, decode": Case(
        contexts=((0, 1), (77, 1), (300, 1)), heads=12, kv_heads=2, threads=3, **(FREE | {"dtype": "f8"})
    ),
    "dots, i8, decode": Case(
        contexts=((0, 1), (77, 1), (300, 1)), heads=12, kv_heads=2, threads=3, **(FREE | {"dtype": "i8"})
    ),
    "more threads than items": Case(contexts=((70, 1),), threads=7, dtype="bf16"),
}


@pytest.mark.parametrize("name", NAMED)
def test_named(library: ctypes.CDLL, name: str) -> None:
    case = NAMED[name]
    close(case, prefill(library, case), Problem(case).oracle())


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 5))
    return Case(
        heads=kv_heads * int(rng.choice([1, 1, 2, 3, 4, 7, 9])),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([1, 2, 7, 16, 24, 40, 64, 65, 96, 128, 160])),
        v_head_dim=int(rng.choice([1, 3, 16, 32, 48, 50, 64, 80, 128])),
        contexts=tuple(
            (int(rng.integers(0, 180)), int(rng.choice([1, 1, 2, 5, 17, 64, 100]))) for _ in range(rng.integers(1, 6))
        ),
        dtype=str(rng.choice(["f32", "bf16", "f16", "i8", "f8"])),
        softcap=float(rng.choice([0, 0, 3.0, 30.0])),
        window=int(rng.choice([0, 0, 1, 5, 16, 33, 100])),
        causal=bool(rng.random() < 0.85),
        sinks=bool(rng.random() < 0.3),
        functor=int(rng.choice([0, 0, 1, 2])),
        threads=int(rng.integers(1, 5)),
        deterministic=bool(rng.random() < 0.3),
        workspace=bool(rng.random() < 0.7),
        seed=seed,
    )


def test_random(library: ctypes.CDLL) -> None:
    for seed in range(60):
        case = random_case(seed)
        try:
            close(case, prefill(library, case), Problem(case).oracle())
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "i8", "f8"])
@pytest.mark.parametrize("dims", [(64, 64), (96, 80), (33, 20)])
def test_deterministic(library: ctypes.CDLL, dtype: str, dims: tuple[int, int]) -> None:
    """A query's result has the same bits however the prompt is cut, whatever shares the step, on any thread count."""
    base = Case(heads=6, kv_heads=2, head_dim=dims[0], v_head_dim=dims[1], contexts=((0, 150), (0, 31), (0, 90)),
                dtype=dtype, window=100, sinks=True)  # fmt: skip
    whole = prefill(library, base)
    starts = np.cumsum([0, 150, 31])
    for threads in (2, 5):
        assert np.array_equal(prefill(library, replace(base, threads=threads)), whole)
    rng = np.random.default_rng(5)
    for chunk in (1, 7, 16, 61):
        machine = Machine(library, Problem(base))
        done, compared = [0, 0, 0], 0
        while any(d < n for d, (_, n) in zip(done, base.contexts, strict=True)):
            tokens: list[tuple[int, int]] = []
            for s in rng.permutation(3):
                if rng.random() < 0.7:
                    take = min(chunk, base.contexts[s][1] - done[s])
                    tokens += [(int(s), done[s] + i) for i in range(take)]
                    done[s] += take
            if not tokens:
                continue
            out = machine.step(tokens)
            for row, (s, p) in zip(out, tokens, strict=True):
                assert np.array_equal(row, whole[starts[s] + p]), f"chunk {chunk}, sequence {s}, position {p}"
                compared += 1
        assert compared == 150 + 31 + 90


def test_the_split_changes_something(library: ctypes.CDLL) -> None:
    """The workspace is really used: its bytes change, and only without `deterministic`."""
    for deterministic in (False, True):
        case = Case(contexts=((1000, 1),), kv_heads=1, threads=3, deterministic=deterministic, workspace=True)
        machine = Machine(library, Problem(case))
        machine.append([(0, p) for p in range(1000)])
        machine.step([(0, 1000)])
        assert bool((machine.workspace[64:] == 0xFF).all()) == deterministic


def test_the_compiler_sizes_scratch_alike(library: ctypes.CDLL) -> None:
    """The compiler repeats the formulas of attend.h in Python; they must agree."""
    library.workspace_bytes.restype = ctypes.c_int64
    for dv in (1, 16, 80, 128, 256):
        assert library.workspace_bytes(dv, 64) == kernels.attend_workspace_bytes(dv)
    for d in (1, 16, 33, 64, 80, 128, 192, 256, 576):
        for dv in (1, 21, 64, 128, 256, 512):
            assert library.scratch_bytes(d, dv) == lower._scratch(f"echoc::attend_scratch_bytes({d}, {dv})"), (d, dv)


def test_a_query_that_sees_nothing_gives_zeros(library: ctypes.CDLL) -> None:
    case = Case(contexts=((20, 3),), functor=1)
    problem = Problem(case)
    problem.slopes = np.full(case.heads, -np.inf, np.float32)  # hides all but the query's own key, where it is NaN
    machine = Machine(library, problem)
    machine.append([(0, p) for p in range(20)])
    machine.append([(0, 20), (0, 21), (0, 22)])
    problem.slopes = np.full(case.heads, np.inf, np.float32)  # (kpos - qpos) * inf = -inf for all earlier keys
    out = machine.attend([(0, 20)])
    assert np.isnan(out).all()  # 0 * inf on its own key: NaN is not swallowed


@pytest.mark.parametrize("dtype", ["i8", "f8"])
@pytest.mark.parametrize("dim", [16, 33, 64])
def test_codes_and_scales_are_those_of_the_reference(library: ctypes.CDLL, dtype: str, dim: int) -> None:
    """To the bit; entries of zeros, tiny and huge values, ties, and some that are not finite are among them."""
    case = Case(dtype=dtype, heads=2, kv_heads=2, head_dim=dim, v_head_dim=dim, contexts=((0, 40),), threads=3)
    problem = Problem(case)
    rng = np.random.default_rng(dim)
    for given in (problem.k[0], problem.v[0]):
        given *= np.exp2(rng.integers(-30, 30, (40, 2, 1))).astype(np.float32)
        given[3], given[4], given[5, 0, 2], given[6, 1, 3] = 0, 1e-36, np.inf, np.nan
        given[7] = np.arange(2 * dim).reshape(2, dim) / 2
        given[7, :, 0] = GREATEST[DType(dtype)]
    machine = Machine(library, problem)
    machine.append([(0, p) for p in range(40)])
    for memory, given, width in ((machine.k, problem.k[0], dim), (machine.v, problem.v[0], dim)):
        codes, scales = quantise(given, DType(dtype))
        pieces = memory.reshape(-1, 2, (width + 4) * PAGE)[machine.table[0, :3]]
        held_scales = np.ascontiguousarray(pieces[..., width * PAGE :]).view(np.float32)
        found = held_scales.transpose(0, 2, 1).reshape(48, 2)[:40]
        np.testing.assert_array_equal(found, scales[..., 0])
        narrow = torch.tensor(codes).to(torch.int8 if dtype == "i8" else torch.float8_e4m3fn).view(torch.uint8).numpy()
        ours = np.sort(pieces[..., : width * PAGE][:2].reshape(2, 2, -1), -1)  # whichever the order in a page
        theirs = np.sort(narrow[:32].reshape(2, PAGE, 2, width).transpose(0, 2, 1, 3).reshape(2, 2, -1), -1)
        np.testing.assert_array_equal(ours, theirs)


def test_no_tokens_at_all(library: ctypes.CDLL) -> None:
    machine = Machine(library, Problem(Case()))
    library.attend_f32(ctypes.byref(machine.args([], np.zeros((1, 1), np.float32), np.zeros(1, np.float32))))

"""Whole launch lists of tiny models in the interpreter: prompts and single tokens, ragged, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreter import Machine
from tiny_models import COMMON, CONFIGS, LLAMA_LIKE, Checkpoint, random_tokens, relative_error, save

from echoc.compiler.api import _import
from echoc.compiler.ir import DType
from echoc.compiler.pipeline import language_model_passes, run_passes
from echoc.compiler.targets.gpu.lower import lower
from echoc.compiler.targets.gpu.render import Device
from echoc.compiler.weights import Weights

MORE: dict[str, dict[str, Any]] = {
    "qwen3": LLAMA_LIKE,
    "gpt_neox": COMMON
    | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "rotary_pct": 0.5,
       "max_position_embeddings": 512, "use_parallel_residual": True},
}  # fmt: skip
FAMILIES = ("llama", "qwen3", "gemma2", "gpt_neox", "gpt_oss", "qwen3_moe")
TOLERANCE = {"f32": 1e-4, "bf16": 0.03, "int8": 0.05, "i8": 0.05, "f8": 0.1}  # of the largest logit
VOCABULARY = 48
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Batch:
    """Sequences on a machine: their tokens, each with pages of its own."""

    def __init__(self, machine: Machine, count: int, pages: int) -> None:
        self.machine, self.lengths = machine, [0] * count
        order = np.random.default_rng(5).permutation(count * pages).astype(np.int32)
        self.table = order.reshape(count, pages)

    def step(self, parts: dict[int, list[int]], deterministic: bool = False) -> dict[int, np.ndarray]:
        """Append tokens to sequences; the logits of all of them by sequence."""
        positions = [self.lengths[s] + i for s, part in parts.items() for i in range(len(part))]
        inputs = {
            "tokens": np.array([t for part in parts.values() for t in part], np.int32),
            "positions": np.array(positions, np.int32),
            "sequences": np.array([s for s, part in parts.items() for _ in part], np.int32),
            "rows": np.arange(len(positions), dtype=np.int32), "block_table": self.table,
        }  # fmt: skip
        count, pages = self.table.shape
        symbols = {"T": len(positions), "R": len(positions), "B": count, "M": pages}
        logits = self.machine.step(inputs, symbols, deterministic)["logits"]
        for s, part in parts.items():
            self.lengths[s] += len(part)
        return dict(zip(parts, np.split(logits, np.cumsum([len(p) for p in parts.values()])[:-1]), strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    family = request.param
    patch = pytest.MonkeyPatch()
    patch.setitem(CONFIGS, family, (CONFIGS | MORE)[family])
    layers = 2 if "sliding_window" in CONFIGS[family] else 1  # windows slide in every other layer
    made = save(tmp_path_factory.mktemp(family), family, num_hidden_layers=layers, vocab_size=VOCABULARY)
    patch.undo()
    return made


def machine(folder: Path, weights_dtype: str, state: DType) -> Machine:
    imported = _import(folder, None, None, lambda stage, done, total: None)
    program = run_passes(imported.program, language_model_passes(state))
    low = lower(program, weights_dtype, 32, Device("cuda"))
    return Machine(low, Weights(program.skin, imported.source, imported.buffers), num_pages=12)


def check(checkpoint: Checkpoint, weights_dtype: str, state: DType) -> None:
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    sequences = [[t % VOCABULARY for t in random_tokens(length, seed=length)] for length in (10, 2)]
    batch = Batch(machine(checkpoint.folder, weights_dtype, state), 2, 4)
    # a prompt in the form for many tokens, then a prompt beside another's token
    for cuts, many in (({0: 9}, True), ({0: 1, 1: 2}, False)):
        parts = {s: sequences[s][batch.lengths[s] :][:n] for s, n in cuts.items()}
        for s, rows in batch.step(parts, many).items():
            found[s].append(rows)
    for s, tokens in enumerate(sequences):
        assert relative_error(np.concatenate(found[s]), checkpoint.logits(tokens)) < max(
            TOLERANCE[weights_dtype], TOLERANCE[state]
        )


def test_logits_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    check(checkpoint, "f32", DType.F32)


@pytest.mark.parametrize(
    ("weights_dtype", "state"), [("bf16", "bf16"), ("int8", "bf16"), ("f32", "i8"), ("bf16", "f8")]
)
def test_narrow_weights_and_states(tmp_path: Path, weights_dtype: str, state: str) -> None:
    check(save(tmp_path, "llama", num_hidden_layers=1, vocab_size=VOCABULARY), weights_dtype, DType(state))


def test_deterministic_rows_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", num_hidden_layers=1, vocab_size=VOCABULARY).folder
    made = machine(folder, "bf16", DType.BF16)
    prompt, other = ([t % VOCABULARY for t in random_tokens(length, seed=length)] for length in (5, 7))
    alone, beside = Batch(made, 2, 4), Batch(machine(folder, "bf16", DType.BF16), 2, 4)
    found = [alone.step({1: prompt}, True)[1], alone.step({1: [9]}, True)[1]]
    wanted = [beside.step({0: other, 1: prompt}, True)[1], beside.step({0: [3, 4], 1: [9]}, True)[1]]
    for a, c in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, c)

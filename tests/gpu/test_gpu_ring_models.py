"""Whole decode steps of small models of several families: CUDA where the fusion takes groups in, on a host machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_chains import ChainLaunches
from launches import close, dequantised

from echoc.compiler.api import _import, language_model_passes, run_passes
from echoc.compiler.ir import DType
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.ops import entries
from echoc.compiler.targets.interface import only_rule
from echoc.compiler.weights import Weights

SMALL = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
# model type -> its configuration, and how many launches of a step of two layers stay with the general renderer
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": (SMALL, 1),
    "qwen3": (SMALL, 1),
    "gemma2": (SMALL | {"sliding_window": 6, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}, 1),
    "gpt_neox": (SMALL | {"rotary_pct": 0.5, "use_parallel_residual": True, "intermediate_size": 128}, 1),
    "cohere": (SMALL, 1),
}


@pytest.mark.parametrize(
    ("family", "rows", "state"),
    [*zip(FAMILIES, (3, 1, 3, 1, 3), ["bf16"] * 5, strict=True), ("llama", 3, "f8"), ("gemma2", 3, "i8")],
)
def test_a_step_gives_the_logits_of_the_reference(family: str, rows: int, state: str, tmp_path: Path) -> None:
    options, left = FAMILIES[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **options}))
    imported = _import(tmp_path / "config.json", 1, None, lambda *_: None)
    program = run_passes(imported.program, language_model_passes(DType(state)))
    generator = np.random.default_rng(rows)

    def draw(name: str) -> np.ndarray[Any, Any]:
        if name in drawn:
            return drawn[name]
        values = imported.source(name)
        spread = generator.standard_normal(values.shape).astype(np.float32)
        drawn[name] = 1 + 0.1 * spread if values.ndim == 1 and not name.endswith("bias") else 0.2 * spread
        return drawn[name]

    drawn: dict[str, np.ndarray[Any, Any]] = {}
    held = Weights(program.skin, draw, imported.buffers)
    rule = only_rule(program.skin)
    names = [n["name"] for r in program.skin.rules for n in r.order if n.op == "weight"]
    values = {name: held.value(name) for name in names}
    launches = ChainLaunches(program, 1 if rows == 1 else 4)
    assert sum(k.language == "triton" for k in launches.kernels) == left, [
        (x.family, [k.name for k in x.kernels]) for x in launches.chain.launches
    ]
    past = [37, 37, 90][:rows]  # the first two rows are of one sequence
    positions = [past[0], past[0] + 1, past[2] if rows == 3 else 0][:rows]
    sizes = {"T": rows, "R": rows, "B": 2, "M": 7}
    ports = {
        "tokens": generator.integers(0, 160, rows), "positions": positions, "sequences": [0, 0, 1][:rows],
        "rows": np.arange(rows), "block_table": generator.permutation(14).reshape(2, 7),
    }  # fmt: skip
    inputs = {name: np.array(array, np.int32) for name, array in ports.items()}
    states = {}
    for pages in program.skin.states:
        states[pages.name] = entries.held(generator.standard_normal((14, 16, *pages.type.shape)), pages.type.dtype)
    found = launches.run(inputs, values, sizes, states)
    outputs, after = run_rule(program.skin, rule, inputs, dequantised(launches, values).__getitem__, states)
    close(found["logits"], outputs["logits"], 2e-2)
    step = {"i8": 2 / 127, "f8": 1 / 8}.get(state, 2e-2)  # what is near a tie falls to either side
    for name, wanted in after.items():
        close(launches.state(name), wanted, step)

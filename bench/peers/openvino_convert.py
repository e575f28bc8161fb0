"""Exports a checkpoint folder to OpenVINO's IR with optimum-intel. Runs where openvino, optimum-intel and nncf are.

Run as a script: `python openvino_convert.py FOLDER OUTPUT DTYPE`, DTYPE one of f32, bf16, int8, int4. bf16 keeps the
checkpoint's 16-bit weights; int8 is OpenVINO's usual 8-bit compression; int4 is symmetric in groups of 32, every
matrix of the blocks, embeddings and head in 8 bits as OpenVINO does by default.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def compression(dtype: str) -> Any:
    """The weight quantisation to ask of optimum-intel, or None."""
    config = importlib.import_module("optimum.intel").OVWeightQuantizationConfig
    if dtype == "int8":
        return config(bits=8)
    if dtype == "int4":
        return config(bits=4, sym=True, group_size=32, ratio=1.0)
    return None


def convert(folder: Path, output: Path, dtype: str) -> None:
    """Writes the stateful model (KV cache inside) to `output`, which appears only when whole."""
    import torch

    kind = torch.float32 if dtype == "f32" else torch.bfloat16
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = importlib.import_module("optimum.intel").OVModelForCausalLM.from_pretrained(
        str(folder),
        export=True,
        compile=False,
        stateful=True,
        torch_dtype=kind,
        load_in_8bit=False,
        quantization_config=compression(dtype),
    )
    model.save_pretrained(str(partial))
    os.replace(partial, output)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

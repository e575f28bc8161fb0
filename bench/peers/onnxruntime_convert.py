"""Builds an ONNX Runtime GenAI model from a checkpoint folder with the package's own builder.

Run as a script: `python onnxruntime_convert.py FOLDER OUTPUT DTYPE`, DTYPE one of f32, int8, int4. int8 and int4 are
symmetric in blocks of 32 with activations quantised to int8 (accuracy level 4), the fastest the CPU provider has.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import shutil
import sys
from pathlib import Path

QUANTISED = ["block_size=32", "is_symmetric=true", "accuracy_level=4"]


def with_tokenizer(folder: Path, beside: Path) -> Path:
    """Links to a checkpoint's files and a tokenizer of one word: the builder loads one before it builds anything."""
    tokenizers = importlib.import_module("tokenizers")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for path in folder.iterdir():
        (beside / path.name).symlink_to(path.resolve())
    word = tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>")
    tokenizers.Tokenizer(word).save(str(beside / "tokenizer.json"))
    (beside / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return beside


def convert(folder: Path, output: Path, dtype: str) -> None:
    """Runs the builder; `output` appears only when whole. A folder without a tokenizer is built without one."""
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("onnxruntime_genai")
    models = Path(package.origin).parent / "models"
    sys.path.insert(0, str(models))  # the builder imports its neighbours by bare name
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if not (folder / "tokenizer.json").is_file():
        base = importlib.import_module("builders.base")
        base.Model.save_processing = lambda *_arguments, **_options: None
        folder = with_tokenizer(folder, output.with_name(output.name + ".source"))
    precision = "fp32" if dtype == "f32" else dtype
    sys.argv = ["builder", "-i", str(folder), "-o", str(partial), "-p", precision, "-e", "cpu"]
    sys.argv += ["-c", str(partial / "cache")]
    if dtype in ("int8", "int4"):
        sys.argv += ["--extra_options", *QUANTISED]
    runpy.run_path(str(models / "builder.py"), run_name="__main__")
    shutil.rmtree(partial / "cache", ignore_errors=True)
    shutil.rmtree(output.with_name(output.name + ".source"), ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

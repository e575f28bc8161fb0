"""From options to runnable engines: which file of `peers/` runs where, on which weights, made from one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoc.bench.process import PEERS, EngineError, EngineSpec, UnsupportedError
from echoc.errors import EchoError
from echoc.runtime.artifact import kv_dtypes

GGUF_TYPES = {"f32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
GGUF_MIXES = {"int4": "Q4_K_M"}  # what llama.cpp's own quantiser makes, of several types
PACKAGE_SOURCES = Path(__file__).resolve().parents[1]  # the folder of the rooms
TASK_LOG_TAIL = 2000
DTYPE_NAMES = {"bf16c": "bf16", "f8": "fp8", "i8": "int8", "i4": "int4"}  # of a manifest, as options have them


@dataclass(frozen=True)
class Model:
    """The model under test: a checkpoint folder, an artifact, or both."""

    name: str
    checkpoint: Path | None
    artifact: Path | None
    vocab_size: int
    weights_dtype: str | None = None  # of the artifact, where there is one


@dataclass(frozen=True)
class Setting:
    """What all engines of one run share: weights dtype, threads, seed, folder for converted models, Pythons.

    `kv_dtype`: of keys and values, None for each engine's own choice. `continuous`: engines are to take requests as
    places get free. `ordinary_priority`: engines run without the real-time priority that the harness may have.
    """

    weights_dtype: str
    threads: int
    seed: int
    work: Path
    pythons: Mapping[str, str]
    deterministic: bool = False
    kv_dtype: str | None = None
    continuous: bool = False
    ordinary_priority: bool = False
    note: Callable[[str], None] = lambda _text: None

    def python_of(self, name: str) -> str:
        """The interpreter that has this peer installed: the option, else $ECHOC_PEER_<NAME>, else our own."""
        variable = "ECHOC_PEER_" + name.upper().replace(".", "_").replace("-", "_")
        return self.pythons.get(name) or os.environ.get(variable) or sys.executable


def open_model(path_or_shape: str, checkpoint: str | None, work: Path) -> Model:
    """Resolves the model argument: an artifact file, a checkpoint folder, or a shape preset made at random."""
    from echoc.bench.checkpoints import make_checkpoint, shape_presets

    path = Path(path_or_shape)
    if path.is_file() and path.suffix == ".echo":
        manifest = read_manifest(path)
        vocab = int(manifest.get("model", {}).get("vocab_size", 0))
        if not vocab:
            raise EchoError(f"{path} holds no language model (its manifest names no vocab_size): nothing to time")
        return Model(path.stem, Path(checkpoint) if checkpoint else None, path, vocab, artifact_dtype(manifest))
    if not path.is_dir() and path_or_shape in shape_presets():
        folder = work / path_or_shape
        if not (folder / "model.safetensors").is_file():
            make_checkpoint(path_or_shape, folder)
        path = folder
    config_path = path / "config.json"
    if not config_path.is_file():
        known = ", ".join(shape_presets())
        raise EchoError(
            f"no model at {path_or_shape}: wanted an .echo artifact, a checkpoint folder, or one of {known}"
        )
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return Model(path.resolve().name, path, None, int(config["vocab_size"]))


def read_manifest(artifact: Path) -> dict[str, Any]:
    """The manifest of an artifact, read without the runtime."""
    try:
        with zipfile.ZipFile(artifact) as archive:
            manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
            return manifest
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise EchoError(f"{artifact} is no artifact of echoc ({error}): compile one with `echoc compile`") from error


def artifact_dtype(manifest: dict[str, Any]) -> str:
    """The weight format that most bytes of an artifact are in, by the name `--weights-dtype` has for it."""
    sizes: dict[str, int] = {}
    for weight in manifest.get("weights", []):
        sizes[weight["format"]] = sizes.get(weight["format"], 0) + int(weight.get("nbytes", 0))
    largest = max(sizes, key=lambda name: sizes[name], default="f32")
    return DTYPE_NAMES.get(largest, largest)


def own_engine(model: Model, setting: Setting) -> EngineSpec:
    """echoc on its artifact, compiled first where only a checkpoint is given."""
    if model.artifact is not None and setting.kv_dtype is not None:
        held = kv_dtypes(read_manifest(model.artifact))
        if held != [setting.kv_dtype]:
            raise UnsupportedError(
                f"{model.artifact} holds keys and values in {', '.join(held) or 'no format'}, not in "
                f"{setting.kv_dtype}: pass the checkpoint folder instead of the artifact"
            )
    artifact = model.artifact or compile_artifact(_checkpoint(model, "echoc"), setting)
    options = _options(artifact, setting) | {"vocab_size": model.vocab_size, "deterministic": setting.deterministic}
    return EngineSpec(
        "echoc",
        PEERS / "own.py",
        sys.executable,
        "reinstall echoc",
        setting.weights_dtype,
        options,
        own_environment(),
        sum(int(weight.get("nbytes", 0)) for weight in read_manifest(artifact).get("weights", [])),
    )


def compile_artifact(checkpoint: Path, setting: Setting) -> Path:
    """`echoc compile` in a child, so that torch's memory is gone when we time. Reused while newer than all sources."""
    kv = f"-kv-{setting.kv_dtype}" if setting.kv_dtype else ""
    output = setting.work / f"{checkpoint.resolve().name}-{setting.weights_dtype}{kv}.echo"
    sources = [*checkpoint.glob("*.json"), *checkpoint.glob("*.safetensors"), *_package_files()]
    if output.is_file() and all(output.stat().st_mtime > path.stat().st_mtime for path in sources):
        return output
    setting.note(f"compiling {output.name}")
    command = [sys.executable, "-m", "echoc", "compile", str(checkpoint)]
    command += ["--weights-dtype", setting.weights_dtype, "-o", str(output)]
    command += ["--kv-dtype", setting.kv_dtype] if setting.kv_dtype else []
    run_task(command, "echoc compile", own_environment())
    return output


def llamacpp_engine(model: Model, setting: Setting) -> EngineSpec:
    """llama.cpp on a GGUF made from the checkpoint, all matrices of one type."""
    return _llamacpp("llama.cpp", GGUF_TYPES, model, setting)


def llamacpp_mix_engine(model: Model, setting: Setting) -> EngineSpec:
    """llama.cpp on a GGUF of the mixed types that its own quantiser gives to most users."""
    return _llamacpp("llama.cpp-k-quants", GGUF_MIXES, model, setting)


def _llamacpp(name: str, types: Mapping[str, str], model: Model, setting: Setting) -> EngineSpec:
    checkpoint, python = _checkpoint(model, name), setting.python_of("llama.cpp")
    install = "install llama-cpp-python and gguf there, or name another with --peer-python llama.cpp=PYTHON"
    if setting.weights_dtype not in types:
        raise UnsupportedError(f"{name} has no {setting.weights_dtype} weights: time it with {', '.join(types)}")
    kind = types[setting.weights_dtype]
    output = setting.work / f"{checkpoint.resolve().name}-{kind}.gguf"
    require_packages(name, python, ("llama_cpp", "gguf"), install)
    if not output.is_file() or output.stat().st_mtime < max(
        p.stat().st_mtime for p in checkpoint.glob("*.safetensors")
    ):
        setting.note(f"converting {output.name}")
        run_task([python, str(PEERS / "gguf_convert.py"), str(checkpoint), str(output), kind], "GGUF conversion")
    return EngineSpec(
        name,
        PEERS / "llamacpp.py",
        python,
        install,
        setting.weights_dtype,
        _options(output, setting),
        weight_bytes=output.stat().st_size,
    )


def transformers_engine(model: Model, setting: Setting) -> EngineSpec:
    """transformers on the checkpoint, f32 or bf16."""
    if setting.weights_dtype not in ("f32", "bf16"):
        raise UnsupportedError(f"transformers runs f32 and bf16 here, not {setting.weights_dtype}: choose another peer")
    install = "install echoc[compile], or name a Python with --peer-python transformers=PYTHON"
    python = setting.python_of("transformers")
    require_packages("transformers", python, ("torch", "transformers"), install)
    options = _options(_checkpoint(model, "transformers"), setting)
    return EngineSpec(
        "transformers",
        PEERS / "transformers_peer.py",
        python,
        install,
        setting.weights_dtype,
        options,
        _threads(setting),
    )


def openvino_engine(model: Model, setting: Setting) -> EngineSpec:
    """OpenVINO on its own export of the checkpoint."""
    checkpoint, python = _checkpoint(model, "openvino"), setting.python_of("openvino")
    install = "install openvino, optimum-intel and nncf there, or name another with --peer-python openvino=PYTHON"
    if setting.weights_dtype not in GGUF_TYPES:
        raise UnsupportedError(f"openvino converts to {', '.join(GGUF_TYPES)} here, not {setting.weights_dtype}")
    output = setting.work / f"{checkpoint.resolve().name}-openvino-{setting.weights_dtype}"
    require_packages("openvino", python, ("openvino",), install)
    if not (output / "openvino_model.xml").is_file():
        require_packages("openvino", python, ("openvino", "optimum.intel", "nncf"), install)
        setting.note(f"exporting {output.name}")
        command = [python, str(PEERS / "openvino_convert.py"), str(checkpoint), str(output), setting.weights_dtype]
        run_task(command, "OpenVINO export")
    options = _options(output, setting) | {"vocab_size": model.vocab_size}
    if setting.continuous:
        require_packages("openvino", python, ("openvino_genai",), "install openvino-genai there")
    file = PEERS / ("openvino_batching.py" if setting.continuous else "openvino_peer.py")
    size = (output / "openvino_model.bin").stat().st_size
    return EngineSpec("openvino", file, python, install, setting.weights_dtype, options, weight_bytes=size)


def onnxruntime_engine(model: Model, setting: Setting) -> EngineSpec:
    """ONNX Runtime GenAI on what its own builder makes of the checkpoint; its CPU provider has no bf16."""
    if setting.weights_dtype in ("bf16", "fp8"):
        raise UnsupportedError(
            f"onnxruntime-genai has no {setting.weights_dtype} on CPUs: time it with f32, int8 or int4 weights"
        )
    checkpoint, python = _checkpoint(model, "onnxruntime-genai"), setting.python_of("onnxruntime-genai")
    install = (
        "install onnxruntime-genai there (and onnx, onnx-ir, torch, transformers to build a model), "
        "or name another with --peer-python onnxruntime-genai=PYTHON"
    )
    output = setting.work / f"{checkpoint.resolve().name}-onnxruntime-{setting.weights_dtype}"
    require_packages("onnxruntime-genai", python, ("onnxruntime_genai",), install)
    if not (output / "genai_config.json").is_file():
        require_packages("onnxruntime-genai", python, ("onnx", "onnx_ir", "torch", "transformers"), install)
        setting.note(f"building {output.name}")
        command = [python, str(PEERS / "onnxruntime_convert.py"), str(checkpoint), str(output), setting.weights_dtype]
        run_task(command, "ONNX Runtime GenAI's builder")
    options = _options(output, setting) | {"vocab_size": model.vocab_size}
    return EngineSpec(
        "onnxruntime-genai",
        PEERS / "onnxruntime_peer.py",
        python,
        install,
        setting.weights_dtype,
        options,
        weight_bytes=sum(path.stat().st_size for path in output.glob("*.data")),
    )


MAKERS: dict[str, Callable[[Model, Setting], EngineSpec]] = {
    "echoc": own_engine,
    "llama.cpp": llamacpp_engine,
    "llama.cpp-k-quants": llamacpp_mix_engine,
    "transformers": transformers_engine,
    "openvino": openvino_engine,
    "onnxruntime-genai": onnxruntime_engine,
}
PEER_NAMES = tuple(name for name in MAKERS if name != "echoc")


# What peers can't do, by peer: asked before anything is converted.
NOT_CONTINUOUS = {
    "transformers": "transformers' generate takes a batch and lets nobody in before its end",
    "onnxruntime-genai": "onnxruntime-genai batches continuously over paged attention only, which is not on its CPUs",
}
KV_CHOICE = ("echoc", "llama.cpp", "llama.cpp-k-quants")


def make_engine(name: str, model: Model, setting: Setting) -> EngineSpec:
    """The engine of this name on this model, its weights converted as needed."""
    if name not in MAKERS:
        raise EchoError(f"unknown peer {name!r}: wanted one of {', '.join(PEER_NAMES)}")
    if setting.continuous and name in NOT_CONTINUOUS:
        raise UnsupportedError(NOT_CONTINUOUS[name])
    if setting.kv_dtype and name not in KV_CHOICE:
        raise UnsupportedError(f"{name} is timed with its own keys and values here, not with {setting.kv_dtype}")
    setting.work.mkdir(parents=True, exist_ok=True)
    return MAKERS[name](model, setting)


def require_packages(peer: str, python: str, packages: tuple[str, ...], install: str) -> None:
    """Says what to install where a peer's Python lacks a package, before anything is timed."""
    code = (
        "import importlib.util, sys\n"
        "def missing(name):\n"
        "    try: return importlib.util.find_spec(name) is None\n"
        "    except ModuleNotFoundError: return True\n"
        "print(*filter(missing, sys.argv[1:]))"
    )
    try:
        found = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{peer}: cannot run {python} ({error}): {install}") from error
    if found.returncode != 0:
        raise EngineError(f"{peer}: {python} is no working Python: {found.stderr.strip()[-300:]}")
    if missing := found.stdout.split():
        raise EngineError(f"{peer} is not installed: {python} lacks {', '.join(missing)}; {install}")


def run_task(command: list[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a preparation step; its own output is shown only where it fails."""
    full = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=full)
    if done.returncode != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-TASK_LOG_TAIL:]
        raise EngineError(f"{what} failed with status {done.returncode}: {' '.join(command)}\n{tail}")


def _checkpoint(model: Model, engine: str) -> Path:
    if model.checkpoint is None:
        raise EchoError(
            f"{engine} needs the checkpoint {model.name} was compiled from: pass it with --checkpoint FOLDER"
        )
    return model.checkpoint


def _options(path: Path, setting: Setting) -> dict[str, Any]:
    return {
        "model": str(path),
        "weights_dtype": setting.weights_dtype,
        "threads": setting.threads,
        "seed": setting.seed,
        "work": str(setting.work),
        "kv_dtype": setting.kv_dtype,
        "ordinary_priority": setting.ordinary_priority,
    }


def _threads(setting: Setting) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(setting.threads)}


def own_environment() -> dict[str, str]:
    """PYTHONPATH with which a child finds the same echoc as this process, installed or not."""
    import echoc.errors

    root = str(Path(echoc.errors.__file__).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}


def _package_files() -> list[Path]:
    rooms = [PACKAGE_SOURCES / room for room in ("compiler", "kernels", "templates")]
    return [path for room in rooms for path in room.rglob("*") if path.is_file() and path.suffix != ".pyc"]

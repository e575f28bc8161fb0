"""From what `echoc run` is given (nothing, an artifact, a model folder) to an artifact on disk."""

import hashlib
import json
import os
from pathlib import Path

from echoc.cli.console import progress_bar, say
from echoc.errors import EchoError

POCKET = "pocket"


def cache_folder() -> Path:
    """Where artifacts that `run` compiled are kept: $ECHOC_CACHE, else echoc/ in the user's cache folder."""
    own = os.environ.get("ECHOC_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echoc"


def pocket_folder() -> Path:
    """The embedded default model, part of the package."""
    import echoc

    folder = Path(str(echoc.__file__)).resolve().parent / POCKET
    if not (folder / "config.json").is_file():
        raise EchoError(
            f"the embedded pocket model is missing: no config.json in {folder}; reinstall echoc, or name a model"
        )
    return folder


def artifact_for(model: Path | None, weights_dtype: str, kv_dtype: str | None, group: int, show_progress: bool) -> Path:
    """The artifact to run: `model` itself when it is a file; else the folder (default: pocket), compiled and cached."""
    if model is not None and not model.is_dir():
        if not model.exists():
            raise EchoError(f"{model}: no such file or folder; give an .echo artifact or a model folder")
        if kv_dtype is not None:
            raise EchoError(f"--kv-dtype is for compiling: {model} keeps its KV cache as it was compiled to")
        return model
    folder = pocket_folder() if model is None else model
    name = POCKET if model is None else folder.resolve().name
    key = _fingerprint(folder, weights_dtype, kv_dtype, group)
    path = cache_folder() / "artifacts" / f"{name}-{weights_dtype}-{key}.echo"
    if not path.exists():
        _compile(folder, path, weights_dtype, kv_dtype, group, show_progress)
    return path


def _compile(
    folder: Path, path: Path, weights_dtype: str, kv_dtype: str | None, group: int, show_progress: bool
) -> None:
    from echoc.compiler.api import compile as compile_model

    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"compiling {folder} to {path} (once)")
    with progress_bar(show_progress) as progress:
        compile_model(
            str(folder), weights_dtype=weights_dtype, kv_dtype=kv_dtype, group=group, output=str(path),
            progress=progress,
        )  # fmt: skip


def _fingerprint(folder: Path, weights_dtype: str, kv_dtype: str | None, group: int) -> str:
    """Changes when a file of the folder, a source of the compiler, the options or the CPU does."""
    from echoc.cli.probe import cpu_facts

    package = Path(__file__).resolve().parent.parent
    sources = [path for room in ("compiler", "kernels", "templates") for path in (package / room).rglob("*.*")]
    files = sorted(path for path in [*folder.iterdir(), *sources] if path.is_file() and path.suffix != ".pyc")
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    facts = [stamps, weights_dtype, kv_dtype, group, cpu_facts()["kernel_features"]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

"""Bad input to the whole path: each is an `EchoError` that says what and where, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import COMMON, random_tokens

import echoc
from echoc import LLM, SamplingParams
from echoc.errors import ArtifactError, CompileError, EchoError, RequestError
from echoc.runtime.artifact import Artifact

Damage = Callable[[Path], Any]


@pytest.fixture
def folder(checkpoint: Callable[..., Any], tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to damage."""
    return Path(shutil.copytree(checkpoint("llama", tie_word_embeddings=False).folder, tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def spoil(name: str, value: float) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[5] = value

    return lambda folder: change_tensors(folder, change)


def cast(name: str, dtype: torch.dtype) -> Damage:
    return lambda folder: change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))


def cut(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "model"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not readable JSON"),
        (lambda f: change_config(f, model_type="nothing-known"), "transformers refuses"),
        (lambda f: change_config(f, hidden_size=72), r"shape .* in the checkpoint"),
        (lambda f: change_config(f, num_hidden_layers=4), r"lacks model\.layers\.3\..*checkpoint is incomplete"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor .*--weights random:SEED"),
        (lambda f: cut(f, 0.7), "truncated"),
        (lambda f: cut(f, 0.001), "truncated"),
        (lambda f: cut(f, 0), "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(random.Random(0).randbytes(5000)), "not a safetensors file"),
        (spoil(DOWN, float("nan")), rf"{DOWN} holds nan at \[0, 5\]"),
        (spoil(NORM, float("inf")), rf"{NORM} holds inf at \[5\]"),
        (cast(DOWN, torch.float8_e4m3fn), "F8_E4M3"),
        (cast(NORM, torch.float8_e5m2), "F8_E5M2"),
        (lambda f: change_tensors(f, lambda t: t.pop(DOWN)), rf"lacks {DOWN}"),
    ],
)
def test_damaged_models_make_no_artifact(folder: Path, tmp_path: Path, damage: Damage, words: str) -> None:
    damage(folder)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CompileError, match=words):
        echoc.compile(folder, weights_dtype="f32", output=out / "x.echo")
    assert list(out.iterdir()) == []


def test_a_missing_shard_makes_no_artifact(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama", shard="100KB").folder, tmp_path / "model")
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CompileError, match=rf"lacks the shard {victim.name}.*download it again"):
        echoc.compile(folder, output=tmp_path / "x.echo")
    assert not list(tmp_path.glob("*x.echo*"))


def test_a_failed_compile_leaves_the_older_artifact(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.echo"
    path.write_bytes(b"the older one")
    spoil(DOWN, float("nan"))(folder)
    with pytest.raises(CompileError, match="nan"):
        echoc.compile(folder, weights_dtype="f32", output=path)
    assert path.read_bytes() == b"the older one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "x.echo"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights_dtype": "int3"}, "unknown weights dtype 'int3'; wanted one of f32, bf16, fp8, int8, int4"),
        ({"weights_dtype": "int4", "group": 48}, "unknown quantisation group 48; wanted one of 32, 64, 128"),
        ({"target": "tpu"}, "unknown target 'tpu'"),
        ({"target": "cpu:pdp11"}, "does not know the CPU level 'pdp11'"),
        ({"weights": "zeros"}, "wanted random:SEED"),
        ({"context_length": 0}, "wanted at least 1"),
        ({"output": "/no/such/folder/x.echo"}, "folder /no/such/folder .* does not exist"),
    ],
)
def test_wishes_that_cannot_be_met(folder: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        echoc.compile(folder, **({"output": tmp_path / "x.echo"} | options))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_encoder_is_refused_with_its_node(tmp_path: Path) -> None:
    """A model whose tokens see those behind them cannot be stepped."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    folder = tmp_path / "model"
    transformers.CONFIG_MAPPING["bert"](**COMMON, **sizes, is_decoder=False).save_pretrained(folder)
    with pytest.raises(CompileError, match=r"refused attention.*not causal"):
        echoc.compile(folder, weights="random:0", output=tmp_path / "x.echo")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.fixture(scope="module")
def llama(compiled: Callable[..., Any]) -> Path:
    return Path(compiled("llama").path)


def test_bad_requests_fail_alone(llama: Path) -> None:
    """Beside each bad request a good one gets the same tokens as ever."""
    llm = LLM(llama, num_pages=8)
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    good = random_tokens(9)
    wanted = llm.generate([good], greedy)[0].outputs[0].token_ids
    for bad, params, words in (
        ([], greedy, "the prompt is empty"),
        ("a text", greedy, "no tokenizer"),
        ([3, 250], greedy, "the vocabulary has 0..249"),
        ([3] * 512, greedy, "context of 512"),
        ([3] * 200, greedy, "the page pool has 8"),
        ([3], SamplingParams(max_tokens=2, logit_bias={999: 1.0}), "vocabulary has 250"),
        ([3], SamplingParams(max_tokens=2, banned_token_ids=list(range(250))), "banned"),
        ([3], SamplingParams(max_tokens=2, stop="x"), "no tokenizer"),
    ):
        first, second = llm.generate([bad, good], [params, greedy])
        assert isinstance(first.error, RequestError)
        assert words in str(first.error)
        assert second.error is None
        assert second.outputs[0].token_ids == wanted


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -2}, {"min_p": 2},
        {"max_tokens": 0}, {"n": 0}, {"repetition_penalty": 0}, {"presence_penalty": 9}, {"seed": 0.5},
        {"logprobs": -1}, {"min_tokens": 9, "max_tokens": 3}, {"stop": [""]}, {"logit_bias": {0: float("inf")}},
    ],
)  # fmt: skip
def test_absurd_sampling_values(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(values))):
        SamplingParams(**values)


@pytest.mark.parametrize(
    "options", [{"num_pages": 0}, {"num_pages": None, "kv_cache_bytes": 10}, {"num_threads": 0}, {"max_num_seqs": 0}]
)
def test_absurd_engines(llama: Path, options: dict[str, Any]) -> None:
    with pytest.raises(EchoError, match=r"wanted|ask for more"):
        LLM(llama, **({"num_pages": 8} | options))


def rewritten(source: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The artifact with another manifest and checksums that fit."""
    from echoc.compiler.artifact import ArtifactWriter

    artifact = Artifact(source)
    with ArtifactWriter(path) as writer:
        for name in artifact.members:
            if name != "manifest.json":
                writer.member(name, [artifact.read(name)])
        manifest = json.loads(artifact.read("manifest.json"))
        change(manifest)
        writer.finish(manifest)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema=99), "artifact schema 99"),
        (lambda m: m["target"].update(machine="aarch64"), "compiled for aarch64"),
        (lambda m: m["target"].update(features=["avx9"]), "avx9"),
        (lambda m: m["target"].update(device="tpu"), "'tpu'"),
        (lambda m: m["target"].update(device="cuda"), "kernels.binaries"),
    ],
)
def test_artifacts_made_for_elsewhere(llama: Path, tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    path = rewritten(llama, tmp_path / "x.echo", change)
    with pytest.raises(EchoError, match=words):
        LLM(path, num_pages=8)


def test_flipped_bits_are_found(llama: Path, tmp_path: Path) -> None:
    """In every member, and anywhere else a flip is refused or changes nothing that is read."""
    original = llama.read_bytes()
    wanted = Artifact(llama)
    generator = random.Random(1)
    places = [m.offset + generator.randrange(m.size) for m in wanted.members.values()]
    places += [generator.randrange(len(original)) for _ in range(20)]
    path = tmp_path / "flipped.echo"
    for place in places:
        damaged = bytearray(original)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        if any(m.offset <= place < m.offset + m.size for m in wanted.members.values()):
            with pytest.raises(ArtifactError, match=r"flipped\.echo"):
                LLM(path, num_pages=8)
            continue
        try:
            found = Artifact(path)
        except ArtifactError:
            continue
        assert {name: found.read(name) for name in found.members} == {n: wanted.read(n) for n in wanted.members}


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9, 0.9999])
def test_truncated_artifacts_are_found(llama: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.echo"
    data = llama.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ArtifactError, match=r"cut\.echo"):
        LLM(path, num_pages=8)


def run_compile(folder: Path, output: Path, before: Callable[[], None] | None = None, **environment: str) -> Any:
    """`echoc compile` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "echoc", "compile", folder, "--weights-dtype", "f32", "-o", output],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=before,
        env=os.environ | environment,
    )


def refused(done: Any, *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_full_disk_leaves_nothing(llama: Path, folder: Path, tmp_path: Path) -> None:
    """The kernels come from the cache; the file may grow to half of what it needs."""
    half = llama.stat().st_size // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    echoc.compile(folder, weights_dtype="f32", output=tmp_path / "whole.echo")
    out = tmp_path / "out"
    out.mkdir()
    refused(run_compile(folder, out / "x.echo", limit), "x.echo")
    assert list(out.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from echoc.compiler.artifact import ArtifactWriter

with ArtifactWriter(Path(sys.argv[1])) as writer:
    writer.member("large", [bytes(1 << 22)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without names")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x.echo"], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_cache_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out"
    out.mkdir()
    refused(run_compile(folder, out / "x.echo", limit, ECHOC_CACHE=str(tmp_path / "cache")))
    assert list(out.iterdir()) == []
    assert list((tmp_path / "cache" / "build").iterdir()) == []


def test_a_cache_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    refused(run_compile(folder, out / "x.echo", ECHOC_CACHE=str(tmp_path / "file" / "cache")), "ECHOC_CACHE")
    assert list(out.iterdir()) == []


def test_no_compiler(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    without = tmp_path / "without"  # a machine without ziglang, whatever is installed here
    without.mkdir()
    (without / "sitecustomize.py").write_text("import sys\nsys.modules['ziglang'] = None\n")
    done = run_compile(folder, out / "x.echo", PATH=str(tmp_path), CXX="", PYTHONPATH=str(without))
    refused(done, "no C++ compiler was found", "apt install g++", "pip install ziglang")
    assert list(out.iterdir()) == []


def test_a_compiler_that_is_named_is_used_or_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    refused(run_compile(folder, out / "x.echo", CXX="/bin/false"), "CXX", "/bin/false")
    assert list(out.iterdir()) == []


def test_a_compiler_that_fails(folder: Path, tmp_path: Path) -> None:
    """It answers what it is asked about itself and then refuses the first kernel."""
    out, script, cache = tmp_path / "out", tmp_path / "cxx", tmp_path / "cache"
    out.mkdir()
    script.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo cxx 1.0;; *-E*) exec g++ "$@";;\n'
        "*) echo 'kernel.cpp:1:1: error: out of patience' >&2; exit 4;; esac\n"
    )
    script.chmod(0o755)
    done = run_compile(folder, out / "x.echo", CXX=str(script), ECHOC_CACHE=str(cache))
    refused(done, "the C++ compiler failed on", "exit code 4", "out of patience", "command: ")
    assert list(out.iterdir()) == []
    assert list((cache / "build").iterdir()) == []


def test_a_foreign_zip_is_no_artifact(tmp_path: Path) -> None:
    path = tmp_path / "x.echo"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", np.zeros(3).tobytes())
    with pytest.raises(ArtifactError, match=r"x\.echo"):
        LLM(path)

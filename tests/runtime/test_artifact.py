"""Opening artifacts: what is damaged, foreign or made for something else is refused before it runs."""

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import build_artifact, expected_greedy, manifest, write_artifact

from echoc import _native
from echoc.errors import ArtifactError, DeviceError, EchoError
from echoc.runtime.artifact import Artifact
from echoc.runtime.devices import cpu
from echoc.runtime.llm import LLM
from echoc.runtime.program import Program
from echoc.runtime.sampling import SamplingParams


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_artifact(tmp_path_factory.mktemp("toy"), **{"large.bin": bytes(range(256)) * 8192})


def rewritten(toy: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """The toy artifact with another manifest or other members, and checksums that fit."""
    with zipfile.ZipFile(toy) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
        description = json.loads(archive.read("manifest.json"))
    change(description, members)
    return write_artifact(folder / "changed.echo", description, members)


def test_crc32_is_that_of_zip() -> None:
    random_bytes = np.random.default_rng(0).integers(0, 256, (3 << 20) + 77, dtype=np.uint8)
    for size in (0, 1, 7, 8, 63, 64, 127, 128, 129, 200, 4096, random_bytes.size):
        data = random_bytes[:size]
        wanted = zipfile.crc32(data.tobytes())  # type: ignore[attr-defined]
        assert {_native.crc32(data, threads) for threads in (1, 2, 3)} == {wanted}


def test_members_are_used_in_place(toy: Path) -> None:
    artifact = Artifact(toy)
    artifact.check_hashes()
    for name in artifact.members:
        assert artifact.view(name).ctypes.data % 64 == 0
        assert not artifact.view(name).flags.writeable
    assert artifact.read("large.bin") == bytes(range(256)) * 8192
    assert artifact.text("chat_template.jinja") is None
    with pytest.raises(ArtifactError, match=r"has no member weights\.bin"):
        artifact.view("weights.bin")


def test_every_flipped_bit_is_found(toy: Path, tmp_path: Path) -> None:
    """A flip is refused, or lies where nothing is: in padding or in a field that no reader uses."""
    original = toy.read_bytes()
    with zipfile.ZipFile(toy) as archive:
        spans = [(info.header_offset, info.filename) for info in archive.infolist()]
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    path = tmp_path / "flipped.echo"
    generator = random.Random(0)
    offsets = [generator.randrange(len(original)) for _ in range(150)]
    artifact = Artifact(toy)
    for member in artifact.members.values():
        offsets += [member.offset, member.offset + member.size // 2, member.offset + member.size - 1]
    assert len(spans) == len(sizes)
    for offset in offsets:
        damaged = bytearray(original)
        damaged[offset] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        inside = any(m.offset <= offset < m.offset + m.size for m in artifact.members.values())
        if inside:
            with pytest.raises(ArtifactError, match="damaged"):
                Artifact(path)
        else:
            try:
                opened = Artifact(path)
            except ArtifactError:
                continue
            assert {name: opened.read(name) for name in opened.members} == {
                name: artifact.read(name) for name in artifact.members
            }


def test_every_truncation_is_found(toy: Path, tmp_path: Path) -> None:
    original = toy.read_bytes()
    path = tmp_path / "short.echo"
    for size in [0, 1, 3, 4, 100, len(original) // 2, len(original) - 100, len(original) - 1]:
        path.write_bytes(original[:size])
        with pytest.raises(ArtifactError):
            Artifact(path)


def test_foreign_files_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.echo"
    with pytest.raises(ArtifactError, match="no artifact at"):
        Artifact(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact(tmp_path)
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(ArtifactError, match="no echoc artifact"):
        Artifact(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(ArtifactError):
        Artifact(path)
    write_artifact(path, manifest(), {})
    with zipfile.ZipFile(path) as archive:
        text = archive.read("manifest.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", text)
    with pytest.raises(ArtifactError, match="compressed"):
        Artifact(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 3}, "artifact schema 3 .* this echoc reads 2: upgrade echoc"),
        ({"schema": 1}, "compile the model again"),
        ({"schema": "1"}, "wanted int"),
        ({"target": 5}, "no object at target"),
        ({"target": {}}, "target.device"),
        ({"symbols": [{"name": "T"}]}, r"symbols\[0\].high"),
        ({"states": [{"kind": "pages"}]}, r"states\[0\].name"),
        ({"ports": [{"name": "x", "direction": "in", "dtype": "f99", "shape": []}]}, "f99"),
        ({"weights": [{"name": "p", "format": "f32", "shape": [1], "nbytes": -4}]}, "wanted 0 or more"),
        ({"variants": [{"launches": [{"kernel": "k", "args": [["stack", 1]]}]}]}, "wanted \\[kind, number\\]"),
    ],
)
def test_manifests_are_checked(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Artifact(write_artifact(tmp_path / "a.echo", manifest(**changes), {}))


def test_a_member_that_the_manifest_lists_must_be_there(toy: Path, tmp_path: Path) -> None:
    def lose(description: dict[str, Any], members: dict[str, bytes]) -> None:
        del members["weights.safetensors"]

    path = rewritten(toy, tmp_path, lose)
    with pytest.raises(ArtifactError, match=r"no member weights\.safetensors"):
        Program(path, num_pages=4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m["target"].update(device="tpu"), DeviceError, "device 'tpu'.*drives cpu, cuda, rocm"),
        (lambda m: m["target"].update(features=["avx1024"]), ArtifactError, "avx1024.*does not have"),
        (lambda m: m["target"].update(machine="pdp11"), ArtifactError, "compiled for pdp11"),
        (lambda m: m["states"][0].update(kind="drum"), ArtifactError, "kind 'drum'"),
        (lambda m: m["variants"][0]["launches"][0].update(kernel="absent"), ArtifactError, "no kernel named absent"),
        (lambda m: m["variants"][0]["launches"][2]["args"][1].__setitem__(1, 7), ArtifactError, "weight 7 of 1"),
        (lambda m: m["weights"][0].update(nbytes=1000), ArtifactError, "64 bytes, wanted 1000"),
        (lambda m: m["weights"][0].update(name="p1"), ArtifactError, "p1.*missing"),
        (lambda m: m.update(variants=[]), ArtifactError, "no variants"),
        (lambda m: m.update(kernels={}), ArtifactError, "no kernel library"),
    ],
)
def test_what_does_not_fit_this_machine_is_refused(
    toy: Path, tmp_path: Path, change: Callable[[Any], None], error: type[EchoError], words: str
) -> None:
    path = rewritten(toy, tmp_path, lambda description, _: change(description))
    with pytest.raises(error, match=words):
        Program(path, num_pages=4)


def test_a_library_of_another_machine_is_refused(toy: Path, tmp_path: Path) -> None:
    path = rewritten(toy, tmp_path, lambda _, members: members.update({"kernels/cpu.so": b"\x7fELF" + bytes(500)}))
    with pytest.raises(DeviceError, match="does not load the kernels"):
        Program(path, num_pages=4)


def test_deterministic_variants_are_asked_for(toy: Path, tmp_path: Path) -> None:
    def drop(description: dict[str, Any], _: dict[str, bytes]) -> None:
        description["variants"] = [v for v in description["variants"] if not v["deterministic"]]

    path = rewritten(toy, tmp_path, drop)
    with pytest.raises(DeviceError, match="no deterministic variants"):
        Program(path, num_pages=4, deterministic=True)
    assert Program(toy, num_pages=4, deterministic=True).max_tokens() == 64


def test_random_weights_are_made_at_load(toy: Path, tmp_path: Path) -> None:
    def make_random(description: dict[str, Any], members: dict[str, bytes]) -> None:
        del members["weights.safetensors"]
        description["random_weights"] = {"seed": 7}
        description["weights"][0].update(
            shape=[20, 64], group=0, interleave=1, experts=3, nbytes=3 * _native.packed_nbytes("f32", 0, 1, 20, 64)
        )

    path = rewritten(toy, tmp_path, make_random)
    first, second = (cpu._weights(Artifact(path), threads)[0] for threads in (1, 2))
    assert np.array_equal(first, second)
    values = [_native.unpack("f32", 0, expert.copy(), 1, 20, 64) for expert in np.split(first, 3)]
    assert np.std(values) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(values[0], values[1])


def test_features_of_this_machine_are_known() -> None:
    assert cpu.cpu_features()
    assert cpu.default_num_threads() >= 1


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_loaded_model_speaks(toy: Path, num_threads: int, deterministic: bool) -> None:
    llm = LLM(toy, num_pages=64, num_threads=num_threads, deterministic=deterministic)
    given = [[5, 6, 7, 8, 9], [3], list(range(1, 60))]
    outputs = llm.generate(given, SamplingParams(temperature=0, max_tokens=20))
    for prompt, output in zip(given, outputs, strict=True):
        assert output.outputs[0].token_ids == expected_greedy(prompt, 20, [0])

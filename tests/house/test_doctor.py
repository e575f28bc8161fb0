"""`echoc doctor` finds things out by trying them."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from echoc.cli import doctor, probe


def test_json_is_pure_and_tells_what_was_tried(echoc: Callable[..., CompletedProcess[str]]) -> None:
    done = echoc("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["target"] for row in report["targets"]} >= {"cpu:native", "cpu:x86-64-v3"}
    tried = [compiler for compiler in report["compilers"] if compiler["version"] is not None]
    assert all(compiler["works"] is (compiler["error"] is None) for compiler in tried)
    assert report["packages"]["numpy"] is not None


def test_the_page_has_a_line_for_each_target(echoc: Callable[..., CompletedProcess[str]]) -> None:
    done = echoc("doctor")
    assert done.returncode == 0, done.stderr
    for target in (f"cpu:{level}" for level in probe.LEVELS):
        assert target in done.stdout


def compiler_script(folder: Path, text: str) -> tuple[str, ...]:
    script = folder / "cxx"
    script.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    script.chmod(0o755)
    return (str(script),)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("[ $1 = --version ] && echo cxx 1.0 && exit 0; echo 'no such header' >&2; exit 1", "no such header"),
        ("[ $1 = --version ] && echo cxx 1.0 && exit 0; exit 3", "exit code 3"),
        ("[ $1 = --version ] && echo cxx 1.0 && exit 0; exit 0", "cannot open shared object file"),
    ],
)
def test_a_compiler_that_fails_is_reported_with_its_error(tmp_path: Path, script: str, error: str) -> None:
    found = probe._try_compiler("cxx", compiler_script(tmp_path, script))
    assert found.version == "cxx 1.0"
    assert not found.works
    assert found.error is not None
    assert error in found.error


def test_gpus_run_what_fits_their_architecture() -> None:
    packages = dict.fromkeys((*doctor.COMPILE_PACKAGES, *doctor.GPU_PACKAGES), "1.0") | {"triton": None}
    gpus = [
        {"vendor": "cuda", "driver": 13000, "devices": [{"architecture": "sm_90"}], "error": None},
        {"vendor": "rocm", "driver": None, "devices": [], "error": "no ROCm driver"},
    ]
    rows = {row["target"]: row for row in doctor._gpu_targets(gpus, packages, {"ok": True})}
    assert [target for target, row in rows.items() if row["runs"]] == ["cuda:sm_90a"]
    assert rows["cuda:sm_90a"]["build_needs"] == ["triton"]
    assert rows["rocm:gfx942"]["run_needs"] == ["a device of gfx942"]
    assert doctor._gpu_targets([], packages, {"ok": False})[0]["run_needs"][0] == "the native extension"
    assert [gpu["vendor"] for gpu in doctor._find_gpus()] == ["cuda", "rocm"]


def test_what_is_missing_is_named() -> None:
    packages = dict.fromkeys((*doctor.RUNTIME_PACKAGES, *doctor.COMPILE_PACKAGES, *doctor.GPU_PACKAGES), "1.0") | {
        "torch": None
    }
    none_works = [probe.Compiler("g++", (), None, False, 0.0, "not found")]
    native = {"ok": True}
    rows = doctor._targets(frozenset({"avx2"}), none_works, packages, native)
    assert rows[0]["build_needs"] == ["torch", "a C++ compiler"]
    assert "CPU feature fma" in rows[0]["run_needs"]
    advice = doctor._advice(none_works, packages, native, {"architecture": "aarch64"})
    assert any("echoc[compile]" in line for line in advice)
    assert any("g++" in line for line in advice)
    assert any("aarch64" in line for line in advice)

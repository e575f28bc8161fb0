"""The tool that checks an artifact on a GPU machine, on the driver of the tests."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import Driver
from toy_model import build_artifact

SMALL = ["--prompt", "20", "--decode", "3", "--replays", "7", "--state-bytes", "4096", "--copy-bytes", "4096"]
SMALL += ["--generate", "24", "--hosted", "9"]
TOOL = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cpu_artifact(folder: Path) -> Path:
    (folder / "cpu").mkdir()
    return build_artifact(folder / "cpu")


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_the_tool_reports_logits_and_times(
    tool: Any, gpu: Driver, gpu_artifact: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = cpu_artifact(tmp_path)
    arguments = [str(gpu_artifact()), "--cpu", str(cpu), *SMALL, "--batches", "1", "3"]
    assert tool.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for part, rows in (("prefill", 20), ("decode", 3)):
        found = report["logits"][part]
        assert (found["rows"], found["same_argmax"], found["max_absolute"], found["finite"]) == (rows, rows, 0.0, True)
    assert report["device"]["name"] == "Fake GPU"
    assert [entry["batch"] for entry in report["decode"]] == [1, 3]
    assert {kernel["kernel"] for kernel in report["decode"][0]["kernels"]} == {"toy_append", "toy_read", "toy_logits"}
    assert len(report["first_token"]) == 2
    assert [(entry["batch"], entry["same_tokens"]) for entry in report["generate"]] == [(1, True), (3, True)]
    assert tool.main([*arguments, "--skip-start"]) == 0
    assert "logits agree within 5%" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_other_logits_are_told(tool: Any, gpu: Driver, gpu_artifact: Make, tmp_path: Path) -> None:
    def other(manifest: Any) -> None:
        for variant in manifest["variants"]:  # rows read what lies behind their own sums
            variant["launches"][2]["args"][0][1] += 8

    cpu = cpu_artifact(tmp_path)
    assert tool.main([str(gpu_artifact(other)), "--cpu", str(cpu), *SMALL, "--skip-start"]) == 1


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_a_folder_is_checked_whole(
    tool: Any, gpu: Driver, gpu_artifact: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    arguments = ["--all", str(folder), *SMALL, "--batches", "3", "--skip-start"]
    assert tool.main(arguments) == 2
    assert "nothing to check" in capsys.readouterr().err
    artifact = gpu_artifact().read_bytes()
    (folder / "toy.gpu.echo").write_bytes(artifact)
    (folder / "toy.cpu.echo").write_bytes(cpu_artifact(tmp_path).read_bytes())
    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "together and alone, are the same to the bit" in shown and "all is right" in shown
    (folder / "torn.gpu.echo").write_bytes(artifact[: len(artifact) // 2])
    assert tool.main(arguments) == 1
    assert "WRONG: torn.gpu.echo" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_a_row_that_changes_in_a_batch_is_told(tool: Any, gpu: Driver, gpu_artifact: Make) -> None:
    def other(manifest: Any) -> None:
        for variant in manifest["variants"]:  # rows read what lies behind their own sums
            variant["launches"][2]["args"][0][1] += 8

    options = tool._options([str(gpu_artifact(other)), *SMALL, "--batches", "3"])
    found = tool.alone_and_together(options, np.arange(1, 24, dtype=np.int32))
    assert found["rows"] == 3 and found["differing_rows"]


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_an_artifact_for_a_cpu_and_a_missing_one_are_named(
    tool: Any, gpu: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(cpu_artifact(tmp_path)), *SMALL, "--skip-start"]) == 2
    assert "compiled for cpu, wanted a GPU" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none.echo")]) == 2
    assert "a fresh process fails" in capsys.readouterr().err


def test_differences_are_measured_against_the_range_of_a_row(tool: Any) -> None:
    wanted = np.array([[0, 1, 3, 0], [2, 2, 2, 6]], np.float32)
    found = wanted + np.array([[0, 0.5, -2.5, 0], [0, 0, 0, -0.3]], np.float32)
    result = tool._difference(np.stack([found, wanted]))
    assert result["max_absolute"] == 2.5
    assert result["max_relative"] == pytest.approx(2.5 / 2)
    assert result["same_argmax"] == 1
    assert result["margins_of_others"] == [2.0]
    assert not tool._difference(np.stack([found * np.nan, wanted]))["finite"]
    assert tool._difference(np.stack([found * np.nan, wanted]))["max_relative"] == np.inf

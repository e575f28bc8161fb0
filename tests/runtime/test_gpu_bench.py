"""The harness on an artifact for a GPU, on the driver of the tests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_fake import Driver

from echoc.bench import cli, gpu

Make = Callable[..., Path]
only_cuda = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)


@only_cuda
def test_an_artifact_for_a_gpu_is_timed_beside_the_copies_of_its_driver(
    gpu: Driver, gpu_artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("echoc.bench.gpu.COPY_BYTES", 1 << 16)
    path = gpu_artifact(lambda manifest: manifest["states"][0].update(shape=[1, 1]))
    arguments = [str(path), "--prefill", "50", "--decode", "6", "--context", "40", "--batch", "3"]
    target = tmp_path / "report.json"
    assert cli.main([*arguments, "--rounds", "2", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["device"]["name"] == "Fake GPU" and report["limits"]["copy_bytes_per_second"] > 0
    assert report["limits"]["matmul"] is None and report["not_measured"]
    assert len(report["start_up"]) == 2
    for start in report["start_up"]:
        assert start["process"] > start["import"] + start["load"] > 0
    assert [result["workload"] for result in report["results"]] == [
        "prefill 50",
        "decode 6 after 40",
        "decode 6 x 3 after 40",
    ]
    for result in report["results"]:
        assert result["seconds"]["count"] == 2
        assert (result["floor_seconds"] is None) == result["workload"].startswith("prefill")
    shown = capsys.readouterr().out
    assert "Fake GPU (sm_90), driver 12040" in shown and "not measured" in shown


@only_cuda
def test_peers_are_not_timed_on_gpus(gpu: Driver, gpu_artifact: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = gpu_artifact(lambda manifest: manifest["states"][0].update(shape=[1, 1]))
    assert cli.main([str(path), "--vs", "llama.cpp"]) == 1
    assert "where no peer is timed" in capsys.readouterr().err


def test_the_reading_floor_counts_weights_and_contexts() -> None:
    shape = gpu.ModelShape(block_weights=1000, head_weights=200, layers=2, heads=4, kv_heads=2, head_dim=8)
    workload = gpu.Workload("batched", 10, 3, 5)
    contexts = 11 + 12 + 13
    wanted = 3 * 1200 * 2 + 5 * contexts * 2 * 2 * 2 * 8 * 2
    assert gpu.reading_floor(workload, shape, "bf16", 1e6) == pytest.approx(wanted / 1e6)
    assert gpu.reading_floor(gpu.Workload("prefill", 10), shape, "bf16", 1e6) is None

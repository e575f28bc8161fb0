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
    arguments = [str(path), "--prefill", "50", "--decode", "6", "--context", "40", "--batch", "3", "--mixed", "20-40"]
    target = tmp_path / "report.json"
    assert cli.main([*arguments, "--rounds", "2", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["device"]["name"] == "Fake GPU" and report["limits"]["copy"] > 0
    assert report["limits"]["read"] is None and report["limits"]["dot"] is None and report["not_measured"]
    assert len(report["start_up"]) == 2
    for start in report["start_up"]:
        assert start["process"] > start["import"] + start["load"] > 0
    assert [result["workload"] for result in report["results"]] == [
        "prefill 50",
        "decode 6 after 40",
        "decode 6 x 3 after 20 to 40",
    ]
    for result in report["results"]:
        assert result["seconds"]["count"] == 2
        assert result["floor_seconds"] > 0 and result["limit"] == "copy"
    shown = capsys.readouterr().out
    assert "Fake GPU (sm_90), driver 12040" in shown and "not measured" in shown


@only_cuda
def test_peers_are_not_timed_on_gpus(gpu: Driver, gpu_artifact: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = gpu_artifact(lambda manifest: manifest["states"][0].update(shape=[1, 1]))
    assert cli.main([str(path), "--vs", "llama.cpp"]) == 1
    assert "where no peer is timed" in capsys.readouterr().err


def test_the_floor_is_the_limit_that_takes_longer() -> None:
    shape = gpu.ModelShape(block_weights=1000, head_weights=200, layers=2, heads=4, kv_heads=2, head_dim=8)
    workload = gpu.Workload("batched", 10, 3, 5)
    contexts = 11 + 12 + 13
    num_bytes = 3 * 1200 * 2 + 5 * contexts * 2 * 2 * 2 * 8 * 2
    operations = 2 * 1200 * 5 * 3 + 4 * 2 * 4 * 8 * 5 * contexts

    def least(read: float | None, dot: float | None) -> tuple[float, str]:
        return gpu.least_seconds(workload, shape, "bf16", gpu.Limits(1e6, read, dot))

    assert least(None, None) == (pytest.approx(num_bytes / 1e6), "copy")
    assert least(2e6, 1e12) == (pytest.approx(num_bytes / 2e6), "read")
    assert least(2e6, 1e3) == (pytest.approx(operations / 1e3), "dot")
    one, eight = (gpu.Workload("prefill", 20, sequences=count) for count in (1, 8))
    limits = gpu.Limits(1e6, 2e6, 1e3)
    assert gpu.least_seconds(eight, shape, "bf16", limits)[0] == 8 * gpu.least_seconds(one, shape, "bf16", limits)[0]

import dataclasses
import json
import sys
import zipfile
from pathlib import Path

import pytest
from bench_machines import FREE, LIMITS
from test_bench_floors import write_checkpoint

from echoc.bench import cli, engines, harness
from echoc.bench.earlier import read_reports
from echoc.bench.harness import BenchOptions, Progress, run_benchmark, run_stages
from echoc.bench.process import EngineSpec, UnsupportedError
from echoc.bench.report import Report, best_limits
from echoc.bench.sampling import SamplingPlan
from echoc.bench.suite import suite_stages
from echoc.bench.tables import tables
from echoc.errors import EchoError

ENGINE = """
import time

class Steady:
    def __init__(self, options, meter):
        self.nap, self.meter, self.dies_at = options["nap"], meter, options.get("dies_at")

    def describe(self):
        return {"version": "1"}

    def prefill(self, num_tokens):
        with self.meter:
            time.sleep(self.nap)

    def decode(self, context, num_tokens):
        self.decoded = getattr(self, "decoded", 0) + 1
        if self.decoded == self.dies_at:
            raise MemoryError("no more")
        self.prefill(num_tokens)

    def batched(self, sequences, context, num_tokens):
        self.prefill(num_tokens)

    def continuous(self, sequences, requests):
        self.prefill(sum(map(sum, requests)))

def open_engine(options, meter):
    return Steady(options, meter)
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchOptions:
    """A run over two engines that sleep, on a machine with fixed limits."""
    file = tmp_path / "steady.py"
    file.write_text(ENGINE)

    def maker(name: str, nap: float) -> None:
        spec = EngineSpec(name, file, sys.executable, "", "bf16", {"nap": nap})
        monkeypatch.setitem(engines.MAKERS, name, lambda _model, _setting: spec)

    maker("echoc", 0.002)
    maker("llama.cpp", 0.02)
    monkeypatch.setattr(harness.Probes, "wait_until_free", lambda _self, *_limits: FREE)
    monkeypatch.setattr(harness.Probes, "core_state", lambda _self: FREE)
    monkeypatch.setattr(harness.Probes, "limits", lambda _self, read: dataclasses.replace(LIMITS, read_bytes=read))
    model = tmp_path / "model"
    model.mkdir()
    write_checkpoint(model, {"embed.weight": [100, 16], "a.weight": [8, 16]})
    plan = SamplingPlan(rounds=2, max_rounds=4, settle_seconds=0, max_lost=9.0)  # none is refused
    return BenchOptions(
        model=str(model), threads=1, vs=["llama.cpp"], decode_tokens=2, batches=[4], plan=plan, work=tmp_path / "work"
    )


def test_a_run_reports_results_ratios_and_limits(options: BenchOptions) -> None:
    steps: list[Progress] = []
    report = run_benchmark(options, steps.append).as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["schema"] == "echoc-bench/3"
    keys = "schema command started machine versions model threads max_lost limits engines results ratios"
    more = "shared_core starts unable core_states samples_clean samples_discarded"
    assert set(report) == {*keys.split(), *more.split()}
    assert [(r["engine"], r["workload"]["kind"]) for r in report["results"]] == [
        (name, kind) for kind in ("prefill", "decode", "batched") for name in ("echoc", "llama.cpp")
    ]
    for result in report["results"]:
        assert result["clean"] + sum(result["discarded"].values()) == len(result["samples"])
        for found in result["states"].values():
            assert found["seconds"]["min"] <= found["seconds"]["median"] <= found["seconds"]["max"]
            assert found["floor_fraction"] == pytest.approx(found["floor"]["seconds"] / found["seconds"]["median"])
    assert all(ratio["peer"] == "llama.cpp" and ratio["speedup"]["count"] > 0 for ratio in report["ratios"])
    assert report["limits"][0]["read_all"] == LIMITS.read_all
    assert (steps[-1].done, steps[-1].total) == (1, 1)


def test_a_suite_has_queues_long_contexts_busy_cores_and_fresh_processes(options: BenchOptions) -> None:
    stages = suite_stages(dataclasses.replace(options, weights_dtypes=["int8", "int4"], vs=["llama.cpp", "openvino"]))
    assert [(stage.continuous, stage.beside_busy, stage.starts) for stage in stages] == [
        (0, False, False),
        (32, False, False),
        (0, False, False),
        (0, True, False),
        (0, False, True),
    ]
    assert stages[1].weights_dtypes == ["int4"]
    assert (stages[2].contexts, stages[2].kv_dtypes, stages[2].vs) == ((8192,), ("bf16", "int8"), ["llama.cpp"])


def test_a_queue_a_busy_core_and_a_fresh_process_are_reported(options: BenchOptions) -> None:
    short = dataclasses.replace(options, prefill=(), decode_tokens=0, batches=())
    seen: list[int] = []
    queue = dataclasses.replace(short, continuous=4)
    busy = dataclasses.replace(short, decode_tokens=2, beside_busy=True)
    fresh = dataclasses.replace(short, starts=True, vs=())
    report = run_stages([queue, busy, fresh], on_change=lambda report: seen.append(len(report.results)))
    assert seen == [2, 2, 6, 6, 6, 6]
    assert [len(result.row.workload.requests) for result in report.results] == [6, 6, 0, 0, 0, 0]
    assert [result.beside for result in report.results[2:]] == [0, 0, 1, 1]
    (start,) = report.starts
    assert start.seconds.low > 0.002
    assert 0 < start.proportional <= start.resident
    document = report.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert any("echoc" in row for _, _, rows in tables(report) for row in rows)


def test_a_run_goes_on_where_it_was_interrupted(options: BenchOptions, tmp_path: Path) -> None:
    first = run_stages([dataclasses.replace(options, decode_tokens=0)])
    path = tmp_path / "report.json"
    cli.write_json([first.as_dict()], str(path))
    seen: list[str] = []
    more = run_stages([options], lambda progress: seen.append(progress.text), earlier=(path, read_reports(path)))
    assert not [text for text in seen if text.startswith("prefill")]
    assert [result.row.workload.kind for result in more.results] == [
        kind for kind in ("prefill", "decode", "batched") for _ in range(2)
    ]
    assert more.as_dict()["results"][:2] == first.as_dict()["results"]
    assert (len(more.limits), more.started) == (4, first.started)


def test_a_report_of_other_sources_does_not_go_on(options: BenchOptions, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = run_stages([dataclasses.replace(options, decode_tokens=0)])
    for change, message in (
        ({"started": "2020-01-01T00:00:00+00:00"}, "has changed since"),
        ({"threads": 7}, "its threads was 7, now it is 1"),
        ({"schema": "echoc-bench/2"}, "schema 'echoc-bench/2', wanted 'echoc-bench/3'"),
        ({"results": 1}, "no report of a run on a CPU"),
    ):
        cli.write_json([report.as_dict() | change], str(path))
        with pytest.raises(EchoError, match=message):
            run_stages([options], earlier=(path, read_reports(path)))


def test_a_peer_without_samples_in_our_state_is_named(options: BenchOptions) -> None:
    report = run_stages([dataclasses.replace(options, decode_tokens=0)])
    peer = report.results[1]
    peer.samples = [dataclasses.replace(sample, state="one-complex") for sample in peer.samples]
    assert report.ratios() == []
    titles = {title: rows for title, _, rows in tables(report)}
    (best,) = titles["against the best peer"]
    assert best[2] == "free"
    assert best[-1].startswith("llama.cpp ")
    assert best[-1].endswith(" (one-complex)")
    assert [row[-2] for row in titles["results"]] == ["free", "one-complex"]
    peer.samples = [dataclasses.replace(sample, seconds=2.0, discarded="busy") for sample in peer.samples]
    assert {title: rows for title, _, rows in tables(report)}["against the best peer"][0][-1] == (
        "llama.cpp (256.0, no clean sample)"
    )


def test_a_peer_that_fails_leaves_and_the_others_go_on(
    options: BenchOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EngineSpec("openvino", tmp_path / "steady.py", sys.executable, "", "bf16", {"nap": 0.01, "dies_at": 3})
    gone = dataclasses.replace(spec, name="transformers", python="/no/such/python")
    monkeypatch.setitem(engines.MAKERS, "openvino", lambda _model, _setting: spec)
    monkeypatch.setitem(engines.MAKERS, "transformers", lambda _model, _setting: gone)
    report = run_stages([dataclasses.replace(options, vs=["transformers", "openvino", "llama.cpp"])])
    counts = {(result.engine, result.row.workload.kind): len(result.samples) for result in report.results}
    assert counts == {
        ("echoc", "prefill"): 2, ("openvino", "prefill"): 2, ("llama.cpp", "prefill"): 2,
        ("echoc", "decode"): 2, ("openvino", "decode"): 1, ("llama.cpp", "decode"): 2,
        ("echoc", "batched"): 2, ("llama.cpp", "batched"): 2,
    }  # fmt: skip
    assert [(entry["engine"], entry["what"]) for entry in report.unable] == [
        ("transformers", "prefill 512, decode 2 after 512, decode 2 x 4 after 512, bf16"),
        ("openvino", "decode 2 after 512, bf16"),
    ]
    assert "MemoryError: no more" in report.unable[1]["reason"]


def test_a_peer_that_cannot_is_named_with_its_reason(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(_model: engines.Model, _setting: engines.Setting) -> EngineSpec:
        raise UnsupportedError("no such weights there")

    monkeypatch.setitem(engines.MAKERS, "llama.cpp", unable)
    report = run_benchmark(dataclasses.replace(options, decode_tokens=0))
    assert isinstance(report, Report)
    assert [result.engine for result in report.results] == ["echoc"]
    assert report.unable == [{"engine": "llama.cpp", "what": "prefill 512, bf16", "reason": "no such weights there"}]


def test_the_command_line_writes_json_and_tables(
    options: BenchOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    arguments = [options.model, "--threads", "1", "--decode", "0", "--prefill", "8", "--rounds", "1"]
    assert cli.main([*arguments, "--work", str(options.work), "--json", str(target)]) == 0
    assert json.loads(target.read_text())["results"][0]["engine"] == "echoc"
    assert "prefill 8" in capsys.readouterr().out
    assert cli.main([*arguments, "--work", str(options.work), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "echoc-bench/3"


def test_errors_are_one_line_and_status_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["/no/such/model", "--threads", "1"]) == 1
    error = capsys.readouterr().err
    assert "no model at /no/such/model" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vs": ["llamafile"]}, r"unknown peer 'llamafile'.*llama\.cpp"),
        ({"weights_dtypes": ["int3"]}, "unknown weights dtype 'int3'"),
        ({"own": False, "vs": []}, "nothing to run"),
        ({"threads": 100000}, "may use 1 to"),
        ({"plan": SamplingPlan(rounds=3, max_rounds=2)}, "1 <= rounds"),
    ],
)
def test_impossible_options(options: BenchOptions, change: dict[str, object], message: str) -> None:
    with pytest.raises(EchoError, match=message):
        dataclasses.replace(options, **change).check()


def test_limits_are_the_best_seen() -> None:
    low = dataclasses.replace(LIMITS, read_all=10e9, dot_int8=900e9)
    best = best_limits([low, LIMITS])
    assert (best.read_all, best.dot_int8, best.threads) == (50e9, 900e9, 2)


def test_a_peer_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match=r"llama\.cpp is not installed.*lacks no_such_package"):
        engines.require_packages("llama.cpp", sys.executable, ("json", "no_such_package"), "install it")
    with pytest.raises(EchoError, match="cannot run"):
        engines.require_packages("llama.cpp", "/no/such/python", ("json",), "install it")


def test_an_artifact_alone_has_no_peers(tmp_path: Path) -> None:
    model = engines.Model("m", None, tmp_path / "m.echo", 100)
    setting = engines.Setting("bf16", 1, 0, tmp_path, {})
    with pytest.raises(EchoError, match="--checkpoint"):
        engines.make_engine("llama.cpp", model, setting)


def test_an_artifact_has_one_weight_format(tmp_path: Path) -> None:
    weights = [{"format": "f32", "nbytes": 100}, {"format": "i4", "nbytes": 900}]
    assert engines.artifact_dtype({"weights": weights}) == "int4"
    model = engines.Model("m", None, tmp_path / "m.echo", 100, "int4")
    assert harness.choose_dtypes(BenchOptions("m"), model) == ("int4",)
    with pytest.raises(EchoError, match="holds int4 weights, but bf16 is asked for"):
        harness.choose_dtypes(BenchOptions("m", weights_dtypes=["bf16"]), model)


def test_an_artifact_has_one_format_of_keys_and_values(tmp_path: Path) -> None:
    artifact = tmp_path / "m.echo"
    with zipfile.ZipFile(artifact, "w") as file:
        file.writestr("manifest.json", json.dumps({"states": [{"kind": "pages", "dtype": "i8"}, {"kind": "rows"}]}))
    model = engines.Model("m", None, artifact, 100, "int4")
    setting = engines.Setting("int4", 1, 0, tmp_path, {}, kv_dtype="int8")
    assert engines.own_engine(model, setting).name == "echoc"
    with pytest.raises(UnsupportedError, match="holds keys and values in int8, not in bf16"):
        engines.own_engine(model, dataclasses.replace(setting, kv_dtype="bf16"))


def test_a_foreign_file_is_no_artifact(tmp_path: Path) -> None:
    foreign = tmp_path / "x.echo"
    foreign.write_bytes(b"not a zip")
    with pytest.raises(EchoError, match="no artifact of echoc"):
        engines.open_model(str(foreign), None, tmp_path)


def test_peer_pythons() -> None:
    assert cli.parse_pythons(["llama.cpp=/a/b"]) == {"llama.cpp": "/a/b"}
    with pytest.raises(EchoError, match="PEER=PYTHON"):
        cli.parse_pythons(["llama.cpp"])


def test_the_environment_names_a_peers_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = engines.Setting("bf16", 1, 0, tmp_path, {"transformers": "/c"})
    monkeypatch.setenv("ECHOC_PEER_LLAMA_CPP", "/b")
    assert setting.python_of("llama.cpp") == "/b"
    assert setting.python_of("transformers") == "/c"


def test_importing_the_harness_brings_no_torch() -> None:
    import subprocess

    code = "import sys, echoc.bench.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    path = ":".join(sys.path)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0

"""The verb `echoc bench` against the harness's own command line."""

import pytest
from typer.testing import CliRunner

from echoc.bench import cli as harness_cli
from echoc.bench.cli import Command
from echoc.bench.harness import BenchOptions
from echoc.bench.kernels.__main__ import LEVELS, available_levels
from echoc.bench.suite import STAGES, suite_stages
from echoc.cli.app import app
from echoc.errors import EchoError


def test_the_verb_hands_its_options_to_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Command] = []
    monkeypatch.setattr(harness_cli, "run_command", seen.append)
    given = ["one", "two", "--decode", "7", "--suite", "queue,long", "--kv-dtype", "bf16,int8", "--json", "out.json"]
    done = CliRunner().invoke(app, ["bench", *given])
    assert done.exit_code == 0, done.output
    assert seen == [harness_cli.parse(given)]
    assert [options.model for options in seen[0].options] == ["one", "two"]
    assert (seen[0].suite, seen[0].options[0].decode_tokens) == (["queue", "long"], 7)


def test_the_verb_reports_a_missing_model() -> None:
    done = CliRunner().invoke(app, ["bench", "/no/such/model", "--threads", "1"])
    assert done.exit_code == 1
    assert "no model at /no/such/model" in done.output
    assert "internal error" not in done.output


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_run_by_name(name: str) -> None:
    options = BenchOptions("model", weights_dtypes=["int8", "int4"], vs=["llama.cpp"])
    (stage,) = suite_stages(options, [name])
    assert stage == suite_stages(options)[STAGES.index(name)]


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(EchoError, match="unknown stages quue: wanted some of table"):
        suite_stages(BenchOptions("model"), ["quue", "table"])


def test_levels_of_kernels_are_those_the_cpu_has() -> None:
    assert available_levels([]) == ["native"]
    everything = [feature for needed, _ in LEVELS.values() for feature in needed]
    assert available_levels(everything) == list(LEVELS)
    assert available_levels(["avx2", "fma", "f16c"]) == ["avx2", "native"]

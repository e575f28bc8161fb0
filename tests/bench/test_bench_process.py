import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from echoc.bench.process import EngineError, EngineProcess, EngineSpec

ENGINE = """
    import os, sys, time

    class Sleeper:
        def __init__(self, options, meter):
            self.options, self.meter = options, meter
            print("a library greets stdout")

        def describe(self):
            return {"version": "1", "nap": self.options["nap"]}

        def prefill(self, num_tokens):
            with self.meter:
                time.sleep(self.options["nap"])

        def decode(self, context, num_tokens):
            raise RuntimeError(f"no context of {context}")

        def batched(self, sequences, context, num_tokens):
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)

    def open_engine(options, meter):
        return Sleeper(options, meter)
"""


def spec(folder: Path, code: str = ENGINE, python: str = sys.executable, **options: Any) -> EngineSpec:
    file = folder / "sleeper.py"
    file.write_text(textwrap.dedent(code))
    return EngineSpec("sleeper", file, python, "install a bed", "bf16", {"nap": 0.01} | options)


def test_a_request_is_timed_in_the_child(tmp_path: Path) -> None:
    with EngineProcess(spec(tmp_path)) as engine:
        reply = engine.request("prefill", num_tokens=4)
    assert engine.description["nap"] == 0.01
    assert 0.01 <= reply.seconds < 5
    assert set(reply.usage) == {"cpu", "involuntary_switches", "run_delay", "machine_busy", "machine_steal"}
    assert reply.peak_bytes >= reply.resident_bytes > 0


def test_a_failing_request_is_reported_and_the_engine_lives_on(tmp_path: Path) -> None:
    with EngineProcess(spec(tmp_path)) as engine:
        with pytest.raises(EngineError, match="sleeper failed while decode: RuntimeError: no context of 9"):
            engine.request("decode", context=9, num_tokens=1)
        assert engine.request("prefill", num_tokens=1).seconds > 0


def test_a_dead_engine_gives_its_status_and_last_words(tmp_path: Path) -> None:
    with (
        EngineProcess(spec(tmp_path)) as engine,
        pytest.raises(EngineError, match=r"(?s)status 7 while batched.*last words"),
    ):
        engine.request("batched", sequences=1, context=1, num_tokens=1)


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    code = "def open_engine(options, meter):\n    import no_such_engine_anywhere\n"
    with (
        pytest.raises(EngineError, match=r"no_such_engine_anywhere.*install a bed"),
        EngineProcess(spec(tmp_path, code)),
    ):
        pass


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot start"), EngineProcess(spec(tmp_path, python="/no/such/python")):
        pass


def test_an_engine_that_hangs_is_ended(tmp_path: Path) -> None:
    with EngineProcess(spec(tmp_path, nap=60), timeout=2.0) as engine:
        child = engine._child
        with pytest.raises(EngineError, match="did not finish prefill"):
            engine.request("prefill", num_tokens=1)
    assert child is not None
    assert child.returncode is not None


def test_a_closed_engine_refuses_requests(tmp_path: Path) -> None:
    engine = EngineProcess(spec(tmp_path))
    with pytest.raises(EngineError, match="not running"):
        engine.request("prefill", num_tokens=1)

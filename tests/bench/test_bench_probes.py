from pathlib import Path

import pytest
from bench_machines import CONTENDED, FREE, SHARED

from echoc.bench import probes
from echoc.bench.machine import available_cpus
from echoc.bench.probes import COMPUTE_KINDS, ProbeError, Probes
from echoc.bench.states import CORE_STATES


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Probes:
    return Probes(threads=1, folder=tmp_path_factory.mktemp("probes"))


@pytest.mark.parametrize("kind", COMPUTE_KINDS)
def test_compute_rates_are_positive_or_absent(machine: Probes, kind: str) -> None:
    rate = machine.compute(kind, 1, 0.0005)
    assert rate.per_second == 0 or rate.per_second > 1e6
    assert rate.cpu_share > 0


def test_every_machine_has_a_multiply_add(machine: Probes) -> None:
    assert machine.compute("fma_f32", 1, 0.0005).per_second > 1e6


def test_reading_has_a_rate(machine: Probes) -> None:
    assert machine.read_bandwidth(1, 1 << 20, passes=1) > 1e6


def test_state_beside_a_sample_is_named(machine: Probes) -> None:
    assert machine.core_state(0.0002).state in CORE_STATES
    assert machine.line_ns() == 0


@pytest.mark.skipif(available_cpus() < 2, reason="a line goes between two CPUs")
def test_a_cache_line_takes_its_time(tmp_path: Path) -> None:
    team = Probes(threads=min(available_cpus(), 4), folder=tmp_path)
    assert all(0 <= team.line_ns() < 2e6 for _ in range(3))


def test_waiting_ends(machine: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([SHARED, SHARED, CONTENDED, FREE, *[SHARED] * 9])
    monkeypatch.setattr(machine, "core_state", lambda: next(seen))
    monkeypatch.setattr(probes.time, "sleep", lambda _seconds: None)
    assert machine.wait_until_free(0.0, 60.0) is FREE
    assert machine.wait_until_free(60.0) is SHARED


def test_the_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probes.build(tmp_path)
    written = first.stat().st_mtime_ns
    assert probes.build(tmp_path) == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ProbeError, match="apt-get install"):
        probes.find_compiler()


def test_a_failing_compiler_shows_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++")
    monkeypatch.setattr(probes, "SOURCE", source)
    with pytest.raises(ProbeError, match="do not compile"):
        probes.build(tmp_path / "cache")


def test_no_threads_is_refused() -> None:
    with pytest.raises(ProbeError, match="at least 1"):
        Probes(threads=0)

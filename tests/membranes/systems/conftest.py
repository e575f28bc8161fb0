"""Small systems, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from echoc.membranes.compiling import compile as compile_system

SOURCES = {
    "doubling.pli": """
        @model<transition>
        def main() { @mu = []'1; @ms(1) = a; [a --> a*2]'1; }
    """,
    "choosing.pli": """
        @model<transition>
        def main() { @mu = []'1; @ms(1) = a*1000; [a --> b]'1; [a --> c]'1; [a --> d, d]'1; }
    """,
    "splitting.pli": """
        @model<membrane_division>
        def main() { @mu = [[]'2]'1; @ms(2) = a, x*3; [a]'2 --> [a][a]; [x --> y]'2; }
    """,
    "subsets.pli": """
        @model<membrane_division>
        def main() { call subsets(4); }
        def subsets(n) {
          @mu = [[]'2]'1; @ms(2) += a{i} : 1<=i<=n; @ms(2) += c{0};
          [a{i}]'2 --> [t{i}] [f{i}] : 1<=i<=n;
          [c{i} --> c{i+1}]'2 : 0<=i<n;
          [c{n}]'2 --> +[]'2 o;
          [o]'1 --> o []'1;
        }
    """,
    "weather.pli": """
        @model<probabilistic>
        def main() {
          @mu = [[]'1,101]'global; @ms(1,101) = dry*400;
          [dry]'1 --> [wet]'1 :: 0.25; [dry]'1 --> [dry]'1 :: 0.75; [wet]'1 --> [dry]'1 :: 1;
        }
    """,
    "gate.toml": """
        name = "gate"
        in.level = "f64[1]"
        out.bell = "objects ring"
        [membranes.mind]
        in.heard = "objects loud"
        out.bell = "objects ring"
        pli = "@model<transition> def main() { @mu = []'1; [loud*3]'1 --> ring []'1; }"
        [[wires]]
        from = "level"
        to = "mind.heard"
        threshold = { above = 0.5, objects = ["loud"] }
        [[wires]]
        from = "mind.bell"
        to = "bell"
    """,
    "coins.pep": """
        coins = {
          H = {m1, m2};
          structure = [m1 [m2 ]m2 ]m1;
          m1 = { var = {x}; pr = {x + 1 -> 1|x}; pr = {x - 1 -> 1|x}; };
          m2 = { var = {y, z}; pr = {1 -> 1|y}; pr = {1 -> 1|z}; };
        }
    """,
    "control.pep": """
        control = {
          H = {m1};
          structure = [m1]m1;
          m1 = { var = {x, y}; pr = {2*x + 1 -> 1|x + 1|y}; var0 = (1, 0); };
        }
    """,
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a source by its name."""
    folder = tmp_path_factory.mktemp("sources")
    for name, text in SOURCES.items():
        (folder / name).write_text(text)
    return lambda name: folder / name


@pytest.fixture(scope="session")
def compiled(source: Callable[[str], Path]) -> Callable[[str], Path]:
    """The artifact of a source, compiled when it is first asked for."""

    def artifact(name: str) -> Path:
        path = source(name).with_suffix(".echo")
        if not path.exists():
            compile_system(source(name), output=path)
        return path

    return artifact

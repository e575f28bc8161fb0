"""The picture and the thinning behind it."""

import builtins
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from echoc.membranes.view.plot import plot
from echoc.membranes.view.shape import Thinned, forest, sample, series
from echoc.membranes.view.trace import Frame, Header, Membrane, TraceError, TraceWriter


def written(path: Path, frames: list[Frame], name: str = "n") -> Path:
    with TraceWriter(path, Header(name, "m")) as out:
        out.write_all(frames)
        out.end(halted=True, reason="no rule applies")
    return path


def growing() -> list[Frame]:
    skin = Membrane(0, "1", 0, None, {"$x_{": 3, "<svg onload='x'>": 1})
    return [
        Frame(k, (skin, *(Membrane(i, "2", i % 3 - 1, 0, {"r": 2**k}) for i in range(1, 1 + 2**k)))) for k in range(8)
    ]


def graph() -> list[Frame]:
    cells = tuple(Membrane(i, "t", 0, None, {"a": i + 1}, f"c{i}") for i in range(5))
    return [Frame(0, cells, links=((0, 1), (1, 2), (2, 2)))]


def values() -> list[Frame]:
    return [Frame(k, values={"x": math.sin(k), "y": math.inf if k == 3 else -k}) for k in range(20)]


def deep() -> list[Frame]:
    return [Frame(0, tuple(Membrane(i, "m", 0, i - 1 if i else None, {"a": 10**400}) for i in range(5000)))]


@pytest.mark.parametrize("frames", [growing, graph, values, deep])
def test_a_picture_is_the_same_twice(frames: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    trace = written(tmp_path / "t", frames(), "a $\\frac name")
    for name in ("one.svg", "two.svg"):
        plot(trace, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    root = ElementTree.fromstring(text)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
    assert not any("onload" in element.attrib for element in root.iter())


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(
        name: str, g: Mapping[str, Any] | None = None, l_: Any = None, f: Sequence[str] = (), level: int = 0
    ) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, g, l_, f, level)

    trace = written(tmp_path / "t", graph())
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(TraceError, match=r"echoc\[plot\]"):
        plot(trace, tmp_path / "x.svg")


def test_a_trace_without_configurations_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    with pytest.raises(TraceError, match="no configuration"):
        plot(written(tmp_path / "t", []), tmp_path / "x.svg")


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 12, 99, 1000, 1001, 1023, 1024, 1025])
def test_thinning_keeps_the_first_and_the_last(length: int) -> None:
    kept: Thinned[int] = Thinned(10)
    for i in range(length):
        kept.offer(lambda i=i: (1, i))  # type: ignore[misc]
    items = kept.items()
    assert items[0] == 0 and items[-1] == length - 1 and items == sorted(set(items))
    assert len(items) <= 11 and len(items) >= min(length, 5)


def test_thinning_keeps_to_its_weight() -> None:
    kept: Thinned[int] = Thinned(10**6, budget=100)
    for i in range(1000):
        kept.offer(lambda i=i: (7, i))  # type: ignore[misc]
    assert 7 <= len(kept.items()) <= 15 and kept.items()[-1] == 999


def test_the_lines_are_those_that_vary() -> None:
    frames = [
        Frame(k, (Membrane(0, "1", objects={"still": 10**6, "moves": 1 + k, **{f"x{i}": 5 for i in range(20)}}),))
        for k in range(5)
    ]
    data = series((sample(f)[1] for f in frames), most=3)
    assert data.lines[0] == ("moves", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert len(data.lines) == 3 and data.num_other == 19 and data.membranes == (1,) * 5
    assert data.other is not None
    assert [sum(v[k] for _, v in data.lines) + data.other[k] for k in range(5)] == [10**6 + 101 + k for k in range(5)]


def test_what_is_not_shown_is_counted() -> None:
    nodes, hidden = forest(growing()[7], merge=False, most=10)
    assert hidden == 0 and len(nodes) == 1
    assert len(nodes[0].children) == 9 and nodes[0].hidden == 2**7 - 9
    merged, _ = forest(growing()[7])
    assert sorted(c.times for c in merged[0].children) == [42, 43, 43]

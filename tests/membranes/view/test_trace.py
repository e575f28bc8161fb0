"""Traces: written, read back, refused."""

import io
import json
import math
from pathlib import Path

import pytest

from echoc.membranes.view.page import render
from echoc.membranes.view.reading import read_trace
from echoc.membranes.view.trace import Fired, Frame, Header, Membrane, Total, TraceError, TraceWriter

HEADER = Header("n", "m", 1, 0, ("1", "2"), ("a",), ("[a --> b]'1",), "n.echo")
START = '{"schema":"echoc.trace/1","name":"n","model":"m","rules":["r"]}\n'


def some_frames() -> list[Frame]:
    skin = Membrane(0, "1", 0, None, {"a": 10**30})
    child = Membrane(5, "2", -1, 0, {"</script>": 2}, "cell", 3)
    return [
        Frame(0, (skin,), {"yes": 1}),
        Frame(1, (skin, child), {}, ((0, 5), (5, 0)), (Fired(0, (-1, 0), 7),), 0.25),
        Frame(2, counts={"1": Total(10**6, {"a": 3})}),
        Frame(4, values={"x": 0.5, "y": -math.inf}),
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", HEADER) as out:
        out.write_all(some_frames())
        assert not (tmp_path / "t").exists()
        out.end(halted=True, reason="no rule applies")
    trace = read_trace(tmp_path / "t")
    assert trace.header == HEADER
    assert list(trace) == some_frames()
    assert list(trace) == some_frames(), "a path can be read again"
    assert trace.end is not None and (trace.end.halted, trace.end.step) == (True, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def interrupted(path: Path, partial: bool) -> None:
    with TraceWriter(path, HEADER, partial=partial) as out:
        out.write_all(some_frames())
        raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "t", partial=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_partial_trace_is_readable(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "t", partial=True)
    with (tmp_path / "t").open("a") as file:
        file.write('{"step": 9, "memb')
    trace = read_trace(tmp_path / "t")
    assert list(trace) == some_frames()
    assert trace.end is None


def test_a_large_configuration_becomes_totals() -> None:
    file = io.StringIO()
    with TraceWriter(file, HEADER, largest=9) as out:
        out.write(Frame(0, tuple(Membrane(i, "2", 0, None, {"a": i + 1}) for i in range(10))))
        out.end(halted=False, reason="memory", message="10 membranes")
    file.seek(0)
    (frame,) = read_trace(file)
    assert frame.counts == {"2": Total(10, {"a": 55})}
    assert frame.num_membranes == 10 and frame.totals() == {"a": 55}


def test_the_writer_refuses_what_the_reader_would() -> None:
    out = TraceWriter(io.StringIO(), HEADER)
    out.write(Frame(3))
    with pytest.raises(TraceError, match="step 3 after step 3"):
        out.write(Frame(3))
    with pytest.raises(TraceError, match="wanted one of no rule applies"):
        out.end(halted=True, reason="tired")
    with pytest.raises(TraceError, match="has no end"):
        out.__exit__(None, None, None)
    with pytest.raises(TraceError, match="cannot be written"):
        TraceWriter("/nowhere/at/all", HEADER)


MEMBRANE = {"id": 0, "label": "1"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("[1]", "an object"),
        ("{", "one JSON object a line"),
        ("[" * 200_000, "one JSON object a line"),
        ('{"step": ' + "9" * 5000 + "}", "one JSON object a line"),
        ('{"step": NaN}', "numbers that JSON knows"),
        ('{"step": 1}', '"membranes", "counts", "values" or "halted"'),
        ('{"step": true, "membranes": []}', "an integer of at least 0"),
        ('{"step": -1, "membranes": []}', "an integer of at least 0"),
        ({"step": 0, "membranes": [MEMBRANE, MEMBRANE]}, "different ids"),
        ({"step": 0, "membranes": [MEMBRANE | {"parent": 7}]}, "the id of a membrane of this configuration"),
        ({"step": 0, "membranes": [MEMBRANE | {"parent": 0}]}, "a forest"),
        ({"step": 0, "membranes": [MEMBRANE | {"objects": {"a": 0}}]}, "an integer of at least 1"),
        ({"step": 0, "membranes": [MEMBRANE | {"objects": ["a"]}]}, "an object"),
        ({"step": 0, "membranes": [MEMBRANE | {"label": 1}]}, "a string"),
        ({"step": 0, "membranes": [{"id": 0}]}, "'label'"),
        ({"step": 0, "membranes": [MEMBRANE], "links": [[0, 1]]}, "both ids"),
        ({"step": 0, "membranes": [MEMBRANE], "links": [[0]]}, "both ids"),
        ({"step": 0, "membranes": [], "applied": [{"rule": 1}]}, "one of the 1 rules"),
        ({"step": 0, "values": {"x": "one"}}, "a number"),
        ({"step": 0, "counts": {"1": {}}}, "'membranes'"),
        ({"halted": 1, "step": 0, "reason": "steps"}, "true or false"),
        ({"halted": True, "step": 0, "reason": []}, "one of no rule applies"),
    ],
)
def test_a_bad_line_is_named(line: object, wanted: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(TraceError) as caught:
        list(read_trace(io.StringIO(START + text + "\n")))
    assert "trace:2: found" in str(caught.value) and wanted in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}\n", '{"schema": "other"}\n', "\x00\n", '{"schema":"echoc.trace/1"}'])
def test_a_bad_header_is_named(text: str) -> None:
    with pytest.raises(TraceError, match=r":1: (found|the file is empty)"):
        read_trace(io.StringIO(text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="UTF-8"):
        read_trace(tmp_path / "t")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "missing")


def test_numbers_beyond_any_float_are_read_and_shown() -> None:
    huge = "9" * 400
    text = f'{START}{{"step":0,"time":-{huge},"values":{{"x":{huge}}}}}\n{{"step":{huge},"values":{{"x":1}}}}\n'
    frames = list(read_trace(io.StringIO(text)))
    assert frames[0].time == -math.inf and frames[0].values == {"x": math.inf} and frames[1].step == int(huge)
    assert render(read_trace(io.StringIO(text)))

"""The manners of every verb: one message, exit codes, quiet pipes, progress only on long work."""

import io
import json
import signal
from collections.abc import Callable

import pytest

from echoc.cli import console
from echoc.errors import ArtifactError


def ended(body: Callable[..., None], **options: bool) -> int:
    with pytest.raises(SystemExit) as raised:
        console.verb(body)(**options)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def raising(error: BaseException) -> Callable[..., None]:
    def body(debug: bool = False) -> None:
        raise error

    return body


def test_an_error_of_ours_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(ArtifactError("x.echo: truncated at byte 12"))) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "echoc: x.echo: truncated at byte 12\n")


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(ArtifactError("bad")), debug=True) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback (most recent call last)")
    assert errors.endswith("echoc: bad\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/disk/x.echo"), "/disk/x.echo: No space left on device"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'echoc[compile]'"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division by zero"), "internal error, please report it: ZeroDivisionError"),
    ],
)
def test_other_errors_say_what_to_do(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(error)) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_an_interrupt_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "echoc: interrupted\n"


def test_a_termination_unwinds_like_an_error() -> None:
    cleaned: list[str] = []

    def body() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append("temporary file")

    before = signal.getsignal(signal.SIGTERM)
    assert ended(body) == 143
    assert cleaned == ["temporary file"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_json_is_one_document_and_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"text": "né\n", "value": 1.5})
    assert json.loads(capsys.readouterr().out) == {"text": "né\n", "value": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"value": float("nan")})


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_bytes_are_told_in_binary_units(count: int, text: str) -> None:
    assert console.human_bytes(count) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_work_over_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, drawn in ((60.0, False), (0.0, True)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr(console, "PROGRESS_AFTER_SECONDS", limit)
        with console.progress_bar() as progress:
            if drawn:
                progress._timer.join()
            progress("packing weights", 3, 10)
        assert ("packing weights" in terminal.getvalue()) is drawn


def test_progress_is_not_drawn_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "PROGRESS_AFTER_SECONDS", 0.0)
    with console.progress_bar() as progress:
        progress("packing weights", 3, 10)
    assert stream.getvalue() == ""

"""An engine in a child process: started with the peer's own Python, asked over pipes, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from echoc.errors import EchoError

PEERS = Path(__file__).with_name("peers")
WORKER = PEERS / "worker.py"
LOG_TAIL = 1500  # characters of a failed engine's own output to show


class EngineError(EchoError):
    """An engine cannot be started, failed at a request, or did not answer in time; `engine`: its name, where it ran."""

    def __init__(self, message: str, engine: str = "") -> None:
        super().__init__(message)
        self.engine = engine


class UnsupportedError(EngineError):
    """An engine has no way to run this: the report says so and the run goes on."""


@dataclass(frozen=True)
class EngineSpec:
    """How to run one engine.

    `name`: as the report calls it. `file`: its module in `peers/`. `python`: interpreter that has it installed.
    `install`: what to tell a user who lacks it. `options`: passed to `open_engine`. `weight_bytes`: of its weights on
    disk.
    """

    name: str
    file: Path
    python: str
    install: str
    weights_dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    weight_bytes: int = 0


@dataclass(frozen=True)
class Reply:
    """One timed request: seconds of the timed part, usage counters (see peers/worker.py), memory in bytes."""

    seconds: float
    usage: dict[str, float]
    resident_bytes: int
    peak_bytes: int


class EngineProcess:
    """A running engine. Use as a context manager."""

    def __init__(self, spec: EngineSpec, timeout: float = 900.0) -> None:
        self.spec, self.timeout = spec, timeout
        self.description: dict[str, Any] = {}
        self.load_seconds = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._pending = b""

    def __enter__(self) -> EngineProcess:
        command = [self.spec.python, str(WORKER), str(self.spec.file), json.dumps(self.spec.options)]
        environment = {**os.environ, **self.spec.environment}
        self._log = tempfile.TemporaryFile()
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
            )
        except OSError as error:
            self._log.close()
            raise EngineError(f"{self.spec.name}: cannot start {self.spec.python}: {error}") from error
        try:
            hello = self._receive("loading")
        except BaseException:
            self.close()
            raise
        self.description = {**hello["ready"], "python": hello["python"]}
        self.load_seconds = float(hello["load_seconds"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child: it leaves when its stdin closes, and is killed if it does not."""
        child = self._child
        if child is not None:
            with contextlib.suppress(OSError):
                if child.stdin is not None:
                    child.stdin.close()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
            self._child = None
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def pid(self) -> int:
        """Process id of the running engine."""
        if self._child is None:
            raise EngineError(f"{self.spec.name} is not running: open it with `with EngineProcess(...)`")
        return self._child.pid

    def request(self, op: str, **arguments: Any) -> Reply:
        """Runs one timed request ("prefill", "decode", "batched", "continuous") and waits for its reply."""
        child = self._child
        if child is None or child.stdin is None:
            raise EngineError(f"{self.spec.name} is not running: open it with `with EngineProcess(...)`")
        try:
            child.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError as error:
            raise self._died(op) from error
        reply = self._receive(op)
        return Reply(reply["seconds"], reply["usage"], reply["resident_bytes"], reply["peak_bytes"])

    def _receive(self, what: str) -> dict[str, Any]:
        line = self._read_line(what)
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._error(f"gave an unreadable reply while {what}: {line[:200]!r}") from error
        if "error" not in reply:
            return reply
        if reply.get("missing"):
            raise self._error(
                f"needs the Python package {reply['missing']!r}, which {self.spec.python} lacks: {self.spec.install}"
            )
        raise self._error(f"failed while {what}: {reply['error']}{self._log_tail()}")

    def _read_line(self, what: str) -> bytes:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(self.timeout):
                    child.kill()
                    raise self._error(f"did not finish {what} in {self.timeout:.0f} s and was ended")
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._died(what)
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _died(self, what: str) -> EngineError:
        status = self._child.wait() if self._child is not None else None
        return self._error(f"ended with status {status} while {what}{self._log_tail()}")

    def _error(self, text: str) -> EngineError:
        return EngineError(f"{self.spec.name} {text}", self.spec.name)

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.flush()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL))
        text = self._log.read().decode(errors="replace").strip()
        return f"\n{text}" if text else ""

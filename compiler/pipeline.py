"""The passes, in order, and what runs between them: verification and dumps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from echoc.compiler.ir import DType, Program
from echoc.compiler.ir.text import show
from echoc.compiler.ir.verify import verify
from echoc.compiler.kv_format import KvFormat
from echoc.compiler.passes.expand_attention import ExpandAttention
from echoc.compiler.passes.fold import Fold
from echoc.compiler.passes.make_stateful import MakeStateful
from echoc.compiler.passes.narrow_ids import NarrowIds
from echoc.compiler.passes.recognize_attention import RecognizeAttention
from echoc.compiler.passes.select_rows import SelectRows
from echoc.compiler.passes.simplify import Simplify
from echoc.errors import IRError


class Pass(Protocol):
    """A pass is a frozen dataclass: its fields are its options, `run` gives the new program."""

    @property
    def name(self) -> str: ...

    def run(self, program: Program) -> Program: ...


def language_model_passes(kv: KvFormat | DType) -> list[Pass]:
    """From a prompt graph to a step program that is ready to be fused; `kv`: the format of keys and values."""
    return [
        Simplify(),
        RecognizeAttention(),
        MakeStateful(kv if isinstance(kv, KvFormat) else KvFormat(kv)),
        SelectRows(),
        *program_passes(),
    ]


def program_passes() -> list[Pass]:
    """What every program goes through before it is fused."""
    return [ExpandAttention(), Simplify(), NarrowIds(), Fold(), Simplify()]


def run_passes(program: Program, passes: list[Pass]) -> Program:
    """The program after all passes. Each result is verified; with ECHOC_DUMP=DIR each is written to DIR."""
    dump = Dump(os.environ.get("ECHOC_DUMP"))
    dump.write("input", program)
    verify(program)
    for step in passes:
        try:
            program = verify(step.run(program))
        except IRError as error:
            raise IRError(f"pass {step.name}: {error}") from error
        dump.write(step.name, program)
    return program


class Dump:
    """Writes the program after every pass; a pass that changed nothing leaves a file that says so."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.last = ""
        self.count = 0

    def write(self, name: str, program: Program) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = show(program)
            body = text if text != self.last else f"(unchanged) {name}\n"
            (self.folder / f"{self.count:02d}_{name}.eir").write_text(body)
        except OSError as error:
            raise IRError(f"ECHOC_DUMP={self.folder} cannot be written: {error}") from error
        self.last = text
        self.count += 1

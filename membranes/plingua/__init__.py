"""The P-Lingua front end: files of P-Lingua 5, and of version 4 with its built-in models, as `System`s."""

from .diagnostics import Diagnostic, Limits, PLinguaError
from .print_system import Unprintable, show
from .reader import parse, read

__all__ = ["Diagnostic", "Limits", "PLinguaError", "Unprintable", "parse", "read", "show"]

"""The P-Lingua front end: files of P-Lingua 5, and of version 4 with its built-in models, as `System`s."""

from .diagnostics import Diagnostic, Limits, PLinguaError, PLinguaWarning
from .print_system import Unprintable, show
from .reader import parse, read

__all__ = ["Diagnostic", "Limits", "PLinguaError", "PLinguaWarning", "Unprintable", "parse", "read", "show"]

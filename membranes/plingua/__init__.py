"""The P-Lingua front end: files of P-Lingua 5, and of version 4 with its built-in models, as `System`s."""

from .diagnostics import Diagnostic, Limits, PLinguaError, PLinguaWarning
from .reader import parse, read

__all__ = ["Diagnostic", "Limits", "PLinguaError", "PLinguaWarning", "parse", "read"]

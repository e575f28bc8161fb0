"""What can go wrong with a reservoir, and what is suspicious about its readout."""

from __future__ import annotations

from echoc.errors import EchoError


class ReservoirError(EchoError, ValueError):
    """A reservoir, a signal or a readout that cannot be used."""


class ReadoutWarning(UserWarning):
    """A readout whose weights the data hardly determine; the message has the condition number and the cause."""

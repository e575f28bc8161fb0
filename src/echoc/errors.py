"""The one exception tree of echoc: every error a user can cause is an `EchoError`."""

from typing import Any


class EchoError(Exception):
    """Base of all errors raised on purpose: the message says what was found, what was wanted, where, and what to do."""


class CompileError(EchoError):
    """The source cannot be compiled: unsupported operation, bad checkpoint, missing or failing C++ compiler."""


class IRError(CompileError):
    """An ill-typed or malformed program; the message points into the program's text."""


class ArtifactError(EchoError):
    """An artifact that is truncated, foreign, corrupted, or made for another version, machine or target."""


class RequestError(EchoError, ValueError):
    """A generation request that cannot be served: bad sampling values, a prompt longer than the context, no pages.

    `output` is what the request had produced before it failed (a `RequestOutput`), or None.
    """

    output: Any = None


class DeviceError(EchoError):
    """The device of an artifact is missing, too old or failed."""


class DeviceMemoryError(DeviceError):
    """The device has not the memory that was asked of it; what it holds already is not touched."""


class JournalError(EchoError):
    """A journal of requests that is in use, damaged, foreign, of another artifact, or cannot be written."""

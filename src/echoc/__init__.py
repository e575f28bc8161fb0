"""echoc compiles models and membrane topologies into fused kernels and steps them with a thin runtime.

artifact = echoc.compile("path/to/model", weights_dtype="bf16", output="model.echo")
outputs = echoc.LLM(artifact).generate("def fibonacci(n):", echoc.SamplingParams(temperature=0, max_tokens=64))
"""

import importlib
from typing import TYPE_CHECKING, Any

from echoc.errors import ArtifactError, CompileError, DeviceError, EchoError, IRError, JournalError, RequestError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact
    from echoc.runtime.async_llm import AsyncLLM
    from echoc.runtime.llm import LLM
    from echoc.runtime.outputs import Increment, RequestOutput
    from echoc.runtime.program import Program, load
    from echoc.runtime.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Artifact",
    "ArtifactError",
    "AsyncLLM",
    "CompileError",
    "DeviceError",
    "EchoError",
    "IRError",
    "Increment",
    "JournalError",
    "Program",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "compile",
    "load",
]

_HOMES = {
    "Artifact": "artifact",
    "AsyncLLM": "async_llm",
    "Increment": "outputs",
    "LLM": "llm",
    "Program": "program",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling",
    "load": "program",
}


def compile(model: Any, **options: Any) -> "Artifact":
    """Compiles a model folder (`echoc.compiler.api.compile`; needs the extra `compile`) or a membrane system: a file
    (.pli, .kpl, .pep, .xml), or what the builders of `echoc.membranes` make (`echoc.membranes.compiling.compile`).
    """
    compiling = importlib.import_module("echoc.membranes.compiling")
    home = compiling if compiling.takes(model) else importlib.import_module("echoc.compiler.api")
    artifact: Artifact = home.compile(model, **options)
    return artifact


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'echoc' has no attribute {name!r}")
    return getattr(importlib.import_module(f"echoc.runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Causal language models of transformers: `export_causal_lm` traces one, `Checkpoint` finds its weights."""

from echoc.compiler.importers.huggingface.checkpoint import Checkpoint, StoredTensor, WeightReference, load_config
from echoc.compiler.importers.huggingface.export import Binding, ExportedModel, export_causal_lm

__all__ = [
    "Binding",
    "Checkpoint",
    "ExportedModel",
    "StoredTensor",
    "WeightReference",
    "export_causal_lm",
    "load_config",
]

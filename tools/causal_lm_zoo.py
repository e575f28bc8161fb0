"""Every causal language model that transformers knows, built tiny: a valid configuration and seeded random weights.

    python tools/causal_lm_zoo.py              # builds and runs them all in eager mode, one line each
    python tools/causal_lm_zoo.py llama OUT    # saves one tiny checkpoint

Most configurations follow general rules on the names of configuration fields; what these cannot know stands per model
type in causal_lm_zoo.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())
MAX_PARAMETERS = 12_000_000


def model_types() -> list[str]:
    """The model types that transformers maps to a causal language model, in its order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A small valid configuration of a model type."""
    from transformers import CONFIG_MAPPING

    return _tiny(CONFIG_MAPPING[model_type], DATA["classes"].get(model_type, {}))


def _tiny(config_class: Any, given: dict[str, Any]) -> Any:
    base = given.get("__base__", {})
    defaults = config_class(**base).to_dict()
    changes = dict(base)
    rules = dict(DATA["rules"])
    for field, more in DATA["where"].items():
        if field in defaults:
            rules.update(more)
    for name, value in rules.items():
        if name in defaults and _like(defaults[name], value):
            changes[name] = value
    sub_configs = getattr(config_class, "sub_configs", None) or {}
    for name, sub_class in sub_configs.items():
        if isinstance(defaults.get(name), dict):
            changes[name] = _tiny_part(sub_class, defaults[name], given.get(name, {}))
    for name, value in given.items():
        if name != "__base__" and name not in sub_configs:
            changes[name] = value
    _shorten_lists(defaults, changes, given)
    for name in [name for name, value in changes.items() if value == "__absent__"]:
        del changes[name]
    return config_class(**changes)


def _tiny_part(sub_class: Any, default: dict[str, Any], given: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    if not hasattr(sub_class, "to_dict") or sub_class.__name__ == "AutoConfig":
        sub_class = CONFIG_MAPPING[default["model_type"]]
    return _tiny(sub_class, given).to_dict()


def _like(default: Any, value: Any) -> bool:
    if isinstance(default, bool | list | dict | str):
        return False
    return default is None or isinstance(default, int | float) or type(default) is type(value)


def _shorten_lists(defaults: dict[str, Any], changes: dict[str, Any], given: dict[str, Any]) -> None:
    """Cuts per-layer lists to the new layer count, keeping one layer of every kind that the default model has."""
    for field in DATA["layers"]:
        old, new = defaults.get(field), changes.get(field)
        if not isinstance(old, int) or not isinstance(new, int):
            continue
        lists = {
            name: value
            for name, value in defaults.items()
            if isinstance(value, list) and len(value) == old and name not in given and old > 2
        }
        kinds = [json.dumps([value[index] for value in lists.values()]) for index in range(old)]
        chosen: list[int] = []
        for index, kind in enumerate(kinds):
            if kind not in [kinds[other] for other in chosen]:
                chosen.append(index)
        chosen += [index for index in range(old) if index not in chosen]
        for name, value in lists.items():
            changes[name] = [value[index] for index in sorted(chosen[:new])]


def build_eager(model_type: str, seed: int = 0, config: Any = None) -> Any:
    """The tiny model with informative random weights, every part of it in transformers' own eager implementation."""
    from transformers import AutoModelForCausalLM

    config = config or tiny_config(model_type)
    with torch.device("meta"):
        size = sum(value.numel() for value in AutoModelForCausalLM.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size / 1e6:.1f} million parameters: not tiny")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    randomise(model, seed)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Seeded weights under which logits differ clearly: matrices keep the size of what passes, norms stray from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2 and "conv" not in name and "norm" not in name:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                parameter.copy_(noise * (0.5 if embedding else parameter.shape[-1] ** -0.5))
            elif "norm" in name or "bias" in name or ".ln" in name:
                parameter.add_(0.1 * noise)


def sample_tokens(config: Any, length: int, seed: int) -> torch.Tensor:
    """i64 [1, length]: tokens of the vocabulary, clear of the special ids at its start."""
    generator = torch.Generator().manual_seed(seed)
    text = config.get_text_config(decoder=True)
    return torch.randint(4, getattr(text, "vocab_size", 256) - 4, (1, length), generator=generator)


def eager_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """f32 [1, S, V] without a cache."""
    import inspect

    arguments = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, **arguments).logits
    return logits.float()


def is_causal(model: Any, length: int = 20) -> bool:
    """Whether no logit depends on a later token."""
    tokens = sample_tokens(model.config, length, 1)
    other = tokens.clone()
    other[0, -4:] = (tokens[0, -4:] + 5) % 200 + 4
    before, after = eager_logits(model, tokens), eager_logits(model, other)
    return bool((before - after)[:, :-4].abs().max() <= 1e-5 * before.abs().max())


def kind_of(model: Any) -> str:
    """plain, moe, latent, recurrent, or not decoder-only with the reason."""
    names = {type(module).__name__.lower() for module in model.modules()}
    fields = model.config.get_text_config(decoder=True).to_dict()
    if any("cross" in name and "attn" in name for name, _ in model.named_modules()) or any(
        "crossatt" in name or "encoder_attn" in name for name, _ in model.named_modules()
    ):
        return "not decoder-only: cross-attention"
    if any("vision" in name or "audio" in name for name in names):
        return "not decoder-only: multimodal"
    if not is_causal(model):
        return "not decoder-only: bidirectional"
    marks = ("mamba", "deltanet", "lightning", "recurrent", "rwkv", "shortconv", "linearattention", "xlstm")
    convolves = any(isinstance(module, torch.nn.Conv1d) for module in model.modules())
    if convolves or any(mark in name for name in names for mark in marks):
        return "recurrent"
    if fields.get("kv_lora_rank"):
        return "latent"
    if any("expert" in name or "moe" in name or "sparsemlp" in name for name in names):
        return "moe"
    return "plain"


def main(arguments: list[str]) -> int:
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(arguments) == 2:
        build_eager(arguments[0]).save_pretrained(arguments[1])
        return 0
    failed = 0
    for model_type in arguments or model_types():
        try:
            model = build_eager(model_type)
            logits = eager_logits(model, sample_tokens(model.config, 20, 0))
            finite = bool(torch.isfinite(logits).all())
            spread = float(logits.std())
            print(f"{model_type:32} {kind_of(model):36} std {spread:8.3f} {'' if finite else 'NOT FINITE'}", flush=True)
        except Exception as error:  # foreign code; the table says what failed
            failed += 1
            first = (str(error).strip().splitlines() or [""])[-1][:150]
            print(f"{model_type:32} FAILED {type(error).__name__}: {first}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A language model artifact: its program as a stepper, its tokenizer, chat template and generation defaults."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.candidates import Candidates
from echoc.runtime.chat import Message, render_chat
from echoc.runtime.devices.cpu import CpuDevice
from echoc.runtime.devices.gpu import GpuDevice
from echoc.runtime.engine import FloatArray
from echoc.runtime.memory import give_back
from echoc.runtime.pages import IntArray
from echoc.runtime.program import Program
from echoc.runtime.sampling import SamplingParams
from echoc.runtime.tokenizer import Tokenizer

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class ProgramStepper:
    """A language model's program behind the engine's `Stepper` protocol."""

    def __init__(self, program: Program) -> None:
        model = program.manifest.model
        self.program = program
        self.vocab_size = _positive(program, model, "vocab_size")
        self.context_length = _positive(program, model, "context_length")
        self.page_size = program.pool.page_size
        self.max_tokens = program.max_tokens()
        self.max_rows = min(program.max_rows(), program.bound("block_table", axis=0))
        device = program.device
        self.drawer = ProgramDrawer(program, device) if isinstance(device, GpuDevice) and device.draws else None
        chooser = ProgramChooser(program, device) if isinstance(device, CpuDevice) else None
        self.chooser = chooser if chooser is not None and chooser.most > 0 else None

    def step(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, rows: IntArray, block_table: IntArray
    ) -> FloatArray:
        """See `Stepper.step`; a program without attention has no use for some of the ports."""
        inputs = {
            "tokens": tokens,
            "positions": positions,
            "sequences": sequences,
            "rows": rows,
            "block_table": block_table,
        }
        outputs = self.program.step(inputs, copy=False, check=False)
        logits: FloatArray = outputs["logits"]
        return logits

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.program.device.copy_pages(pairs)


class ProgramDrawer:
    """Steps of a language model whose tokens are chosen on the device, behind the `loop.Drawer` protocol."""

    def __init__(self, program: Program, device: GpuDevice) -> None:
        self._program, self._device = program, device

    def draw(self, batch: Mapping[str, IntArray], records: IntArray) -> list[int]:
        return self._device.draw(*_bound(self._program, batch), records)

    def begin(self, batch: Mapping[str, IntArray], records: IntArray) -> None:
        self._device.begin_loop(*_bound(self._program, batch), records)

    def advance(self, block_table: IntArray | None) -> None:
        self._device.advance_loop(block_table)

    def collect(self) -> list[int]:
        return self._device.collect()

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._device.copy_pages(pairs)


class ProgramChooser:
    """Steps of a language model that hand out the best logits alone, behind the `candidates.Chooser` protocol."""

    def __init__(self, program: Program, device: CpuDevice) -> None:
        self._program, self._device = program, device
        self.most = device.most_candidates

    def choose(self, batch: Mapping[str, IntArray], wanted: IntArray) -> Candidates:
        return self._device.choose(*_bound(self._program, batch), wanted)


def _bound(program: Program, batch: Mapping[str, IntArray]) -> tuple[int, list[int], list[Any]]:
    """What a device takes for a step: the variant, the symbols' values and an array per port."""
    variant, dims, ports, _ = program.bind(batch, "step", check=False)
    return variant, dims, ports


class Model:
    """Everything of a language model artifact that serving needs, loaded."""

    def __init__(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        num_pages: int | None,
        kv_cache_bytes: int | None,
        max_num_seqs: int,
        num_threads: int | None,
        deterministic: bool,
        prefix_cache: bool,
        device_index: int | None = None,
    ) -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        manifest = self.artifact.manifest
        if "vocab_size" not in manifest.model:
            raise ArtifactError(f"{self.artifact.path} holds no language model; use echoc.load for other programs")
        self.program = Program(
            self.artifact,
            num_pages=num_pages,
            state_bytes=kv_cache_bytes,
            most_pages=_useful_pages(self.artifact, kv_cache_bytes, max_num_seqs),
            num_threads=num_threads,
            deterministic=deterministic,
            prefix_cache=prefix_cache,
            device_index=device_index,
        )
        self.stepper = ProgramStepper(self.program)
        self.tokenizer = _tokenizer(self.artifact)
        self.chat_template = self.artifact.text("chat_template.jinja")
        self.generation_config: Mapping[str, Any] = self.artifact.json_member("generation_config.json") or {}

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens with which the model ends a text."""
        listed = [self.artifact.manifest.model.get("eos_token_ids"), self.generation_config.get("eos_token_id")]
        found: set[int] = set()
        for entry in listed:
            found.update([entry] if isinstance(entry, int) else entry or [])
        return sorted(found)

    def default_params(self, **changes: Any) -> SamplingParams:
        """The model's own generation defaults, with `changes`."""
        config = self.generation_config
        values = {name: config[name] for name in _DEFAULTS if isinstance(config.get(name), int | float)}
        if config.get("do_sample") is False:
            values = {"temperature": 0.0}
        return SamplingParams(**(values | changes))

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The prompt text of a conversation. Raises RequestError when the model has no chat template."""
        if self.chat_template is None:
            raise RequestError(f"{self.artifact.path} has no chat template: use generate with a prompt of text")
        return render_chat(self.chat_template, messages, **(self._special_tokens() | options))

    def _special_tokens(self) -> dict[str, str]:
        model = self.artifact.manifest.model
        named = {"bos_token": model.get("bos_token_id"), "eos_token": next(iter(self.eos_token_ids), None)}
        named |= {"pad_token": model.get("pad_token_id"), "unk_token": model.get("unk_token_id")}
        tokenizer = self.tokenizer
        if tokenizer is None:
            return {}
        spelled = {name: tokenizer.token(token) for name, token in named.items() if isinstance(token, int)}
        return {name: token for name, token in spelled.items() if token is not None}


def _tokenizer(artifact: Artifact) -> Tokenizer | None:
    text = artifact.text("tokenizer.json")
    if text is None:
        return None
    tokenizer = Tokenizer(text, str(artifact.path))
    del text
    give_back()
    return tokenizer


def _positive(program: Program, model: Mapping[str, Any], key: str) -> int:
    value = model.get(key)
    if not isinstance(value, int) or value < 1:
        raise ArtifactError(f"{program.artifact.path}: manifest.json has {value!r} at model.{key}, wanted 1 or more")
    return value


def _useful_pages(artifact: Artifact, kv_cache_bytes: int | None, max_num_seqs: int) -> int:
    """Pages of the KV cache that could ever be used. Raises DeviceError for bytes that hold none."""
    manifest = artifact.manifest
    context = manifest.model.get("context_length")
    page_size = max(manifest.page_size, 1)
    if kv_cache_bytes is not None and kv_cache_bytes < manifest.page_bytes:
        raise DeviceError(
            f"kv_cache_bytes is {kv_cache_bytes}, one page of {page_size} tokens takes {manifest.page_bytes}: ask for "
            "more"
        )
    return max(1, max_num_seqs * -(-context // page_size)) if isinstance(context, int) else 1 << 20

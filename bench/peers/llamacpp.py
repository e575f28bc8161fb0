"""llama.cpp as a peer, through the C API that llama-cpp-python exposes (the same calls as its llama-bench)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter

MICRO_BATCH = 512
PART = 512  # tokens of a long context that are computed
KV_TYPES = {"f32": "GGML_TYPE_F32", "bf16": "GGML_TYPE_F16", "f16": "GGML_TYPE_F16", "int8": "GGML_TYPE_Q8_0"}


class LlamaCpp:
    """A GGUF model and one context at a time, made for the number and length of sequences asked for."""

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import llama_cpp
        from llama_cpp import llama_cpp as api

        self.api, self.meter = api, meter
        self.version = llama_cpp.__version__
        self.path = str(options["model"])
        self.threads = int(options["threads"])
        self.kv_dtype: str | None = options.get("kv_dtype")
        self.random = np.random.default_rng(int(options.get("seed", 0)))
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"no GGUF file at {self.path}")
        self.log_callback = api.llama_log_callback(lambda _level, _text, _data: None)
        api.llama_log_set(self.log_callback, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(self.path.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {self.path}")
        self.vocab_size = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))
        self.context: Any = None
        self.context_key = (0, 0, False)
        self.cached = 0  # context tokens held by every sequence of the context

    def describe(self) -> dict[str, Any]:
        """Version, system features, model and its size in bytes."""
        system = self.api.llama_print_system_info().decode()
        size = int(self.api.llama_model_size(self.model))
        return {"version": self.version, "system": system, "model": self.path, "weight_bytes": size}

    def _open(self, sequences: int, length: int, unified: bool = False, spare: bool = False) -> None:
        """A context of `sequences` KV streams of at least `length` tokens, kept while the request stays the same;
        `spare`: with room for one more sequence in the same stream."""
        key = (sequences + spare, -(-length // 256) * 256, unified or spare)
        if self.context is not None and key == self.context_key:
            return
        if self.context is not None:
            self.api.llama_free(self.context)
        params = self.api.llama_context_default_params()
        params.n_ctx = sequences * key[1]
        params.n_seq_max, params.kv_unified = key[0], key[2]
        params.n_batch = max(2048, length)
        if self.kv_dtype:
            params.type_k = params.type_v = getattr(self.api, KV_TYPES[self.kv_dtype])
            # 8-bit values want flash attention; over 16 bits it is the slower way to decode on a CPU
            f16 = self.kv_dtype in ("bf16", "f16")
            params.flash_attn_type = getattr(self.api, f"LLAMA_FLASH_ATTN_TYPE_{'DISABLED' if f16 else 'ENABLED'}")
        params.n_ubatch = MICRO_BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.no_perf = True
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {sequences} x {length} tokens")
        self.context_key, self.cached = key, 0

    def _tokens(self, count: int) -> list[int]:
        return [int(token) for token in self.random.integers(0, self.vocab_size, count)]

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One llama_decode over rows of (token, position, sequence, wants logits)."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for index, (token, position, sequence, wanted) in enumerate(rows):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = wanted
            status = self.api.llama_decode(self.context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode of {len(rows)} tokens returned {status}")
            self.api.llama_synchronize(self.context)
        finally:
            self.api.llama_batch_free(batch)

    def _greedy(self, row: int) -> int:
        logits = self.api.llama_get_logits_ith(self.context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab_size,))))

    def _forget(self, start: int) -> None:
        memory = self.api.llama_get_memory(self.context)
        for sequence in range(self.context_key[0]):
            self.api.llama_memory_seq_rm(memory, sequence, start, -1)

    def _fill(self, sequences: int, context: int, num_tokens: int) -> None:
        """Makes every sequence hold exactly `context` tokens, computing them only the first time.

        The speed of decoding does not depend on what keys and values are. So several sequences are copies of one, and
        a long context is its first tokens again and again, keys turned to their positions.
        """
        repeated = sequences == 1 and context > PART
        self._open(sequences, context + num_tokens, spare=repeated)
        if self.cached == context:
            self._forget(context)
            return
        self._forget(0)
        computed = PART if repeated else context
        tokens = self._tokens(computed)
        self._decode([(token, at, 0, at == computed - 1) for at, token in enumerate(tokens)])
        memory = self.api.llama_get_memory(self.context)
        if repeated:
            self._repeat(memory, context)
        for sequence in range(1, sequences):
            self.api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        if self.api.llama_memory_seq_pos_max(memory, sequences - 1) != context - 1:
            raise RuntimeError(f"llama.cpp holds no {context} tokens after they were computed")
        self.cached = context

    def _repeat(self, memory: Any, context: int) -> None:
        """The tokens of sequence 0 again until it holds `context`; sequence 1 is the way there."""
        size = self.api.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        if self.api.llama_state_seq_get_data(self.context, state, size, 0) != size:
            raise RuntimeError("llama.cpp does not give the keys and values it holds")
        for start in range(PART, context, PART):
            if self.api.llama_state_seq_set_data(self.context, state, size, 1) == 0:
                raise RuntimeError("llama.cpp does not take back the keys and values it gave")
            self.api.llama_memory_seq_rm(memory, 1, context - start, -1)
            self.api.llama_memory_seq_add(memory, 1, 0, -1, start)
            self.api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            self.api.llama_memory_seq_rm(memory, 1, -1, -1)

    def prefill(self, num_tokens: int) -> None:
        """Times one pass over a fresh prompt."""
        self._open(1, num_tokens)
        self._forget(0)
        self.cached = 0
        rows = [(token, at, 0, at == num_tokens - 1) for at, token in enumerate(self._tokens(num_tokens))]
        with self.meter:
            self._decode(rows)
            self._greedy(-1)

    def decode(self, context: int, num_tokens: int) -> None:
        """Times greedy steps of one sequence."""
        self.batched(1, context, num_tokens)

    def batched(self, sequences: int, context: int, num_tokens: int) -> None:
        """Times greedy steps of several sequences."""
        self._fill(sequences, context, num_tokens)
        tokens = self._tokens(sequences)
        with self.meter:
            for step in range(num_tokens):
                self._decode([(token, context + step, sequence, True) for sequence, token in enumerate(tokens)])
                tokens = [self._greedy(row) for row in range(sequences)]

    def continuous(self, sequences: int, requests: list[list[int]], unified: bool = False) -> None:
        """Times all requests as llama.cpp's server takes them: each batch has the next token of every sequence that
        generates, then prompt tokens up to the size of a micro batch."""
        self._open(sequences, max(prompt + output for prompt, output in requests), unified)
        self._forget(0)
        self.cached = 0
        waiting = [(self._tokens(prompt), output) for prompt, output in reversed(requests)]
        places: list[_Place | None] = [None] * sequences
        memory = self.api.llama_get_memory(self.context)
        with self.meter:
            while waiting or any(places):
                for index in range(sequences):
                    if places[index] is None and waiting:
                        places[index] = _Place(*waiting.pop())
                self._advance(places, memory)

    def _advance(self, places: list[_Place | None], memory: Any) -> None:
        """One batch over all places; those that end are freed."""
        rows: list[tuple[int, int, int, bool]] = []
        ends: list[tuple[int, int]] = []  # row with logits, its place
        held = [(index, place) for index, place in enumerate(places) if place is not None]
        for index, place in sorted(held, key=lambda item: item[1].at < item[1].prompt):
            for _ in range(min(len(place.tokens) - place.at, MICRO_BATCH - len(rows))):
                last = place.at + 1 == len(place.tokens)
                if last:
                    ends.append((len(rows), index))
                rows.append((place.tokens[place.at], place.at, index, last))
                place.at += 1
        self._decode(rows)
        for row, index in ends:
            ended = places[index]
            assert ended is not None
            ended.tokens.append(self._greedy(row))
            if len(ended.tokens) - ended.prompt == ended.outputs:
                self.api.llama_memory_seq_rm(memory, index, -1, -1)
                places[index] = None


class _Place:
    """A request at work: its tokens so far, how many of them the cache holds (`at`), what it is to give."""

    def __init__(self, tokens: list[int], outputs: int) -> None:
        self.tokens, self.outputs = tokens, outputs
        self.prompt, self.at = len(tokens), 0


def open_engine(options: dict[str, Any], meter: Meter) -> LlamaCpp:
    """Options: model (GGUF path), threads, seed."""
    return LlamaCpp(options, meter)

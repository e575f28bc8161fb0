"""OpenVINO GenAI's continuous batching over its export of the checkpoint: paged attention, its own scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter

STEP_TOKENS = 512
PAGE_TOKENS = 32  # of the CPU plugin's cache


class OpenVinoBatching:
    """A continuous batching pipeline, made for the number of sequences asked for."""

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import openvino
        import openvino_genai

        self.api, self.meter, self.tensor = openvino_genai, meter, openvino.Tensor
        self.version = openvino_genai.__version__
        self.path, self.threads = str(options["model"]), int(options["threads"])
        self.precision = "f32" if options["weights_dtype"] == "f32" else "bf16"
        self.vocab_size = int(options["vocab_size"])
        self.random = np.random.default_rng(int(options.get("seed", 0)))
        self.opened: tuple[tuple[int, int], Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Version and settings."""
        return {"version": self.version, "step_tokens": STEP_TOKENS, "prefix_caching": False}

    def _pipeline(self, sequences: int, length: int) -> Any:
        if self.opened is None or self.opened[0] != (sequences, length):
            scheduler = self.api.SchedulerConfig()
            scheduler.max_num_seqs = sequences
            scheduler.max_num_batched_tokens = STEP_TOKENS
            scheduler.num_kv_blocks = sequences * -(-length // PAGE_TOKENS) + sequences
            scheduler.dynamic_split_fuse = True
            scheduler.enable_prefix_caching = False
            settings = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": self.precision}
            pipeline = self.api.ContinuousBatchingPipeline(self.path, scheduler, "CPU", settings)
            self.opened = ((sequences, length), pipeline)
        return self.opened[1]

    def _config(self, output: int) -> Any:
        config = self.api.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos = True
        config.do_sample = False
        return config

    def continuous(self, sequences: int, requests: list[list[int]]) -> None:
        """Times all requests, at most `sequences` at once, from the first prompt to the last token."""
        pipeline = self._pipeline(sequences, max(sum(request) for request in requests))
        prompts = [self.random.integers(0, self.vocab_size, (1, prompt), dtype=np.int64) for prompt, _ in requests]
        with self.meter:
            handles = [
                pipeline.add_request(number, self.tensor(prompt), self._config(output))
                for number, (prompt, (_, output)) in enumerate(zip(prompts, requests, strict=True))
            ]
            while pipeline.has_non_finished_requests():
                pipeline.step()
        made = sum(len(handle.read_all()[0].generated_ids) for handle in handles)
        if made != sum(output for _, output in requests):
            raise RuntimeError(f"{made} tokens came, {sum(output for _, output in requests)} were asked for")


def open_engine(options: dict[str, Any], meter: Meter) -> OpenVinoBatching:
    """Options: model (folder of the export), weights_dtype, vocab_size, threads, seed."""
    return OpenVinoBatching(options, meter)

"""Trains the pocket model, echoc's embedded default, from scratch on Python's standard-library sources.

    python examples/pocket/train.py                                              # one GPU: minutes
    python examples/pocket/train.py --steps 4000 --batch 4 --context 512 --evals 4 --out build/pocket/cpu    # a CPU

The folder written is a Hugging Face checkpoint in bf16 with `metrics.json` (held-out figures, the exact command,
versions and the data's digest) beside it. The best weights by held-out loss are kept as training goes on, so a run
that is stopped early still leaves a model.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
import transformers
from corpus import BEGIN, BEGIN_ID, END, END_ID, Corpus, build_corpus, load_corpus, save_corpus
from network import Network
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
PROMPTS = ("def fibonacci(n):", "class Stack:\n    ", "import os\n\ndef read_lines(path):\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "model", help="folder to write")
    parser.add_argument("--corpus", type=Path, help="packed corpus to read, or to write with --pack-only")
    parser.add_argument("--pack-only", action="store_true", help="write the packed corpus and stop")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=60.0, help="the schedule is shortened to end in this time")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--context", type=int, default=2048, help="tokens a training window")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--quantise-from", type=float, default=0.75, help="fraction of the run at which int4 enters")
    parser.add_argument("--evals", type=int, default=24, help="held-out evaluations, evenly spaced")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def make_config() -> LlamaConfig:
    """4.59 million parameters; every contraction is a multiple of 128 long, so that any group size packs."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )


class Windows:
    """Training windows: BEGIN, then text from the start of a random line. Seeded apart from the network's noise."""

    def __init__(self, corpus: Corpus, args: argparse.Namespace) -> None:
        stream = torch.from_numpy(corpus.train.astype("int64"))
        newline = torch.tensor(
            [(BEGIN in t or "Ċ" in t) for t, _ in sorted(corpus.tokenizer.get_vocab().items(), key=lambda i: i[1])]
        )
        starts = newline[stream[: -args.context - 1]].nonzero().squeeze(1) + 1
        self.stream, self.starts = stream.to(args.device), starts.to(args.device)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.shape, self.device = (args.batch, args.context), args.device

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [batch, context]."""
        batch, context = self.shape
        chosen = torch.randint(len(self.starts), (batch,), generator=self.generator).to(self.device)
        spans = self.starts[chosen][:, None] + torch.arange(context, device=self.device)
        targets = self.stream[spans]
        return torch.cat((torch.full_like(targets[:, :1], BEGIN_ID), targets[:, :-1]), 1), targets


def held_out_batches(corpus: Corpus, context: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every held-out token once, as a target, in windows of `context` that begin with BEGIN; padded with -100."""
    windows = [row[i : i + context] for row in corpus.held_out for i in range(0, len(row), context)]
    windows += [windows[0][:0]] * (-len(windows) % batch)
    targets = torch.full((len(windows), context), -100)
    for row, window in zip(targets, windows, strict=True):
        row[: len(window)] = torch.from_numpy(window.astype("int64"))
    inputs = torch.cat((torch.full_like(targets[:, :1], BEGIN_ID), targets[:, :-1].clamp_min(0)), 1)
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


class Trainer:
    """Holds the network, its optimizer and the best weights so far."""

    def __init__(self, corpus: Corpus, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        self.args, self.corpus, self.config = args, corpus, make_config()
        self.network = Network(self.config, args.dropout, args.context).to(args.device)
        matrices = [p for p in self.network.parameters() if p.ndim == 2]
        gains = [p for p in self.network.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=args.device == "cuda")
        self.run = torch.compile(self.network) if args.device == "cuda" else self.network
        self.windows = Windows(corpus, args)
        self.held_out = held_out_batches(corpus, args.context, args.batch)
        self.gates = [torch.zeros((), device=args.device), torch.ones((), device=args.device)]
        self.coin = torch.Generator().manual_seed(args.seed + 1)
        self.start, self.best = time.perf_counter(), math.inf
        self.best_state: dict[str, torch.Tensor] = {}
        self.history: list[list[float]] = []

    def progress(self, step: int) -> float:
        """How far the run is, 0 to 1: by steps, or by the clock where that is ahead."""
        return max(step / self.args.steps, (time.perf_counter() - self.start) / (60 * self.args.minutes))

    def step(self, step: int, progress: float) -> torch.Tensor:
        """One optimizer step; returns the mean loss in nats per token, left on the device."""
        warm = min(1.0, (step + 1) / max(1, min(200, self.args.steps // 10)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        quantised = progress >= self.args.quantise_from and torch.rand((), generator=self.coin).item() < 0.5
        inputs, targets = self.windows.draw()
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.device == "cuda"):
            loss, count = self.run(inputs, targets, self.gates[int(quantised)])
        mean = loss / count
        mean.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean.detach()

    @torch.no_grad()
    def evaluate(self, quantised: bool) -> float:
        """Held-out loss in nats per token, with exact or with int4 weights."""
        self.network.eval()
        total = count = 0.0
        for inputs, targets in self.held_out:
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.device == "cuda"):
                pair = self.run(inputs.to(self.args.device), targets.to(self.args.device), self.gates[int(quantised)])
            total, count = total + pair[0].item(), count + pair[1].item()
        self.network.train()
        return total / count

    def checkpoint(self, step: int, train_loss: float) -> None:
        """Evaluates; keeps and writes the weights when the mean of exact and int4 held-out loss is the best yet."""
        exact, int4 = self.evaluate(False), self.evaluate(True)
        seconds = time.perf_counter() - self.start
        speed = (step + 1) * self.args.batch * self.args.context / seconds
        self.history.append([step + 1, round(train_loss, 4), round(exact, 4), round(int4, 4)])
        print(
            f"step {step + 1:5d}  {seconds:5.0f} s  {speed / 1e3:6.1f}k tokens/s  train {train_loss:.4f}  "
            f"held-out {exact:.4f}  int4 {int4:.4f}",
            flush=True,
        )
        if (exact + int4) / 2 < self.best:
            self.best = (exact + int4) / 2
            self.best_state = {k: v.to("cpu", torch.bfloat16) for k, v in self.network.state_dict().items()}
            self.save()

    def save(self) -> None:
        """Writes the best weights so far as a Hugging Face folder."""
        save_model(self.config, self.best_state, self.corpus, self.args.out)

    def train(self) -> int:
        """Runs the schedule; returns the number of steps taken."""
        due, losses = 1, []
        for step in range(self.args.steps):
            progress = self.progress(step)
            losses.append(self.step(step, progress))
            last = self.progress(step + 1) >= 1
            if last or progress * self.args.evals >= due:
                due += 1
                self.checkpoint(step, torch.stack(losses).mean().item())
                losses.clear()
            if last:
                break
        return step + 1


def save_model(config: LlamaConfig, state: dict[str, torch.Tensor], corpus: Corpus, folder: Path) -> None:
    """config.json, model.safetensors in bf16, tokenizer and generation defaults, through transformers itself."""
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"the trained weights do not fit LlamaForCausalLM: {missing}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=BEGIN_ID, eos_token_id=END_ID, pad_token_id=END_ID, do_sample=True, temperature=0.7, top_p=0.95
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


@torch.no_grad()
def measure(folder: Path, corpus: Corpus, args: argparse.Namespace) -> dict[str, object]:
    """Held-out figures and greedy samples of the written folder, as plain transformers loads it in f32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.set_float32_matmul_precision("highest")
    nats = count = 0.0
    for inputs, targets in held_out_batches(corpus, args.context, 4):
        logits = model(inputs.to(args.device)).logits.flatten(0, 1)
        nats += torch.nn.functional.cross_entropy(logits, targets.flatten().to(args.device), reduction="sum").item()
        count += (targets != -100).sum().item()
    samples = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt).input_ids], device=args.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=96)
        samples[prompt] = tokenizer.decode(out[0], skip_special_tokens=True)
    return {
        "held_out": {
            "loss_nats_per_token": round(nats / count, 4),
            "perplexity_per_token": round(math.exp(nats / count), 4),
            "bits_per_byte": round(nats / math.log(2) / corpus.held_out_bytes, 4),
            "tokens": int(count),
            "bytes": corpus.held_out_bytes,
            "window": args.context,
            "files": corpus.held_out_names,
        },
        "samples": samples,
    }


def main() -> None:
    args = parse_arguments()
    if args.corpus and args.corpus.exists() and not args.pack_only:
        corpus = load_corpus(args.corpus)
    else:
        corpus = build_corpus(make_config().vocab_size)
    print(f"corpus: {json.dumps(corpus.facts)}, {len(corpus.train)} training tokens", flush=True)
    if args.pack_only:
        save_corpus(corpus, args.corpus)
        return
    trainer = Trainer(corpus, args)
    size = sum(p.numel() for p in trainer.network.parameters())
    print(f"{size / 1e6:.2f} million parameters on {args.device}", flush=True)
    steps = trainer.train()
    seconds = time.perf_counter() - trainer.start
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    metrics = {
        "command": shlex.join(["python", "examples/pocket/train.py", *sys.argv[1:]]),
        **measure(args.out, corpus, args),
        "parameters": size,
        "steps": steps,
        "tokens_seen": steps * args.batch * args.context,
        "seconds": round(seconds, 1),
        "device": device,
        "data": corpus.facts | {"train_tokens": len(corpus.train)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "history": {"columns": ["step", "train", "held_out", "held_out_int4"], "rows": trainer.history},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps({k: v for k, v in metrics["held_out"].items() if k != "files"}))
    print(*metrics["samples"].values(), sep="\n----\n")


if __name__ == "__main__":
    main()

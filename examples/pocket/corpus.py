"""The pocket model's text: the Python sources of the running interpreter's standard library.

Files are split into training and held-out sets by a hash of their relative name, so that the split does not
depend on the order of a directory walk. A byte-level BPE tokenizer is trained on the training files alone.
The packed result (one `.npz`) can be carried to another machine and trained on there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END = "<|begin|>", "<|end|>"
BEGIN_ID, END_ID = 0, 1
HELD_OUT_PERCENT = 3
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__", "pydoc_data", "lib2to3/tests/data", "lib-dynload")

# Indentation is one piece of its own and a newline never joins what stands before it, so that a prompt that ends
# after a colon, a newline or an indentation is cut where the training text was cut.
PIECES = r"(?<=\n)[ \t]+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[\r\n]+|[^\S\r\n]+(?!\S)|[^\S\r\n]+"


@dataclass(frozen=True)
class Source:
    """One standard-library file: its name relative to the library's root, and its text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training text and, file by file, of the held-out text.

    train: uint16 [N], each file between BEGIN and END. held_out: one uint16 array a file, without BEGIN, with END.
    """

    train: np.ndarray
    held_out: list[np.ndarray]
    held_out_names: list[str]
    held_out_bytes: int
    tokenizer: Tokenizer
    facts: dict[str, object]


def is_table(text: str) -> bool:
    """Whether a file is data in the shape of code: character maps, long literals, dumps of numbers."""
    lines = text.count("\n") + 1
    digits = sum(text.count(digit) for digit in "0123456789")
    return "decoding_table" in text or len(text) / lines > 90 or digits > 0.2 * len(text)


def read_sources(root: Path | None = None) -> list[Source]:
    """Every distinct UTF-8 Python file of the standard library that is code, sorted by name."""
    root = root or Path(sysconfig.get_path("stdlib"))
    sources, seen = [], set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(f"{folder}/" in f"{name}/" for folder in SKIPPED_FOLDERS) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) < 64 or digest in seen or is_table(text):
            continue
        seen.add(digest)
        sources.append(Source(name, text))
    return sources


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens; encoding puts BEGIN in front, as training windows have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, BEGIN_ID), (END, END_ID)]
    )
    return tokenizer


def build_corpus(vocab_size: int) -> Corpus:
    """Reads the library, trains the tokenizer on the training files and tokenises both sets."""
    sources = read_sources()
    train = [s for s in sources if not s.held_out]
    held_out = [s for s in sources if s.held_out]
    tokenizer = train_tokenizer([s.text for s in train], vocab_size)
    ids = [e.ids for e in tokenizer.encode_batch_fast([s.text for s in sources], add_special_tokens=False)]
    by_name = {s.name: np.array(row, np.uint16) for s, row in zip(sources, ids, strict=True)}
    stream = [part for s in train for part in ([BEGIN_ID], by_name[s.name], [END_ID])]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.text.encode() + b"\0")
    facts: dict[str, object] = {
        "python": sys.version.split()[0],
        "files": len(sources),
        "train_files": len(train),
        "train_bytes": sum(len(s.text.encode()) for s in train),
        "sha256": digest.hexdigest(),
    }
    return Corpus(
        train=np.concatenate([np.asarray(part, np.uint16) for part in stream]),
        held_out=[np.append(by_name[s.name], END_ID).astype(np.uint16) for s in held_out],
        held_out_names=[s.name for s in held_out],
        held_out_bytes=sum(len(s.text.encode()) for s in held_out),
        tokenizer=tokenizer,
        facts=facts,
    )


def save_corpus(corpus: Corpus, path: Path) -> None:
    """Packs a corpus into one `.npz` without pickled objects."""
    record = {
        "names": corpus.held_out_names,
        "bytes": corpus.held_out_bytes,
        "tokenizer": corpus.tokenizer.to_str(),
        "facts": corpus.facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        train=corpus.train,
        held_out=np.concatenate(corpus.held_out),
        lengths=np.array([len(row) for row in corpus.held_out]),
        record=np.frombuffer(json.dumps(record).encode(), np.uint8),
    )


def load_corpus(path: Path) -> Corpus:
    """Reads what `save_corpus` wrote."""
    with np.load(path) as packed:
        record = json.loads(packed["record"].tobytes())
        held_out = np.split(packed["held_out"], np.cumsum(packed["lengths"])[:-1])
        train = packed["train"]
    tokenizer = Tokenizer.from_str(record["tokenizer"])
    return Corpus(train, held_out, record["names"], record["bytes"], tokenizer, record["facts"])


def sample_held_out(limit_bytes: int) -> list[Source]:
    """Held-out files of moderate size in the order of their names' hashes, up to `limit_bytes` of text in all."""
    chosen, total = [], 0
    rows = [s for s in read_sources() if s.held_out and 1000 <= len(s.text) <= 24000]
    for source in sorted(rows, key=lambda s: hashlib.sha256(s.name.encode()).hexdigest()):
        if total + len(source.text.encode()) <= limit_bytes:
            chosen.append(source)
            total += len(source.text.encode())
    return chosen

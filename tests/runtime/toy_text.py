"""A byte-level tokenizer of 97 tokens: letters, digits, some signs, and the bytes of é and two emoji."""

import json
from typing import Any

EOS, BOS = 0, 1
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m['role']) }}{% endif %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _byte_spellings() -> dict[int, str]:
    """How byte-level vocabularies spell the 256 bytes: printable ones as themselves, the others above U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def vocabulary() -> dict[str, int]:
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?()\n"
    wide = sorted(set("é😀🙂".encode()))
    spelled = _byte_spellings()
    names = ["<eos>", "<bos>", *(spelled[byte] for byte in [*letters, *wide])]
    names += ["th", "he", spelled[32] + "a", "an", "in", "er", "on", "re", "ed", "st", "ou", "ha"]
    names += [a + b for a in "xyz" for b in "xyz"]
    return {name: i for i, name in enumerate(names[:97])}


def tokenizer_json() -> str:
    vocab = vocabulary()
    merges = [[name[0], name[1]] for name in vocab if len(name) == 2]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special: list[dict[str, Any]] = [
        {
            "id": i,
            "content": name,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, name in enumerate(("<eos>", "<bos>"))
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "dropout": None, "unk_token": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        }
    )

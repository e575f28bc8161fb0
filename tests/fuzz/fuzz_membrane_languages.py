"""Throws damaged and made-up sources at the readers of membranes: languages, topologies, traces, trees, tableaus.

    python tests/fuzz/fuzz_membrane_languages.py --seconds 60 --language plingua

A reader may give what it reads or raise an EchoError, and nothing else, in bounded time and memory. The first input
that breaks this is written to a file and the run ends with 1. A language is registered in LANGUAGES: its reader, its
words, and small sources to mutate.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import membrane_readers as readers
from membrane_readers import Language

from echoc.errors import EchoError

HERE = Path(__file__).resolve().parent
SLOW = 20.0  # seconds of CPU for one small input: longer is a hang
MEMORY = 4 << 30  # bytes of address space: an input that wants more fails


def mutate(source: str, words: Sequence[str], generator: random.Random) -> str:
    """The source with one to eight cuts, copies, swaps, insertions and changed characters."""
    for _ in range(generator.randint(1, 8)):
        at, end = sorted(generator.randrange(len(source) + 1) for _ in range(2))
        end = min(end, at + generator.choice([1, 3, 20, 200]))
        kind = generator.randrange(7)
        if kind == 0:
            source = source[:at] + source[end:]
        elif kind == 1:
            source = source[:at] + source[at:end] * generator.randint(2, 5) + source[end:]
        elif kind == 2:
            source = source[:at] + generator.choice(words) + source[at:]
        elif kind == 3:
            source = source[:at] + generator.choice(words) + source[end:]
        elif kind == 4:
            source = source[:at] + chr(generator.choice([0, 9, 39, 92, 127, 233, 0x2028, 0x1F600])) + source[at + 1 :]
        elif kind == 5:
            number = generator.choice(["0", "-1", "9223372036854775807", "1e308", "99999999999999999999", "0.5", "63"])
            source = source[:at] + number + source[end:]
        else:
            other = generator.randrange(len(source) + 1)
            source = source[:at] + source[other : other + 30] + source[end:]
        source = source[:20_000]
    return source


def soup(words: Sequence[str], generator: random.Random) -> str:
    return generator.choice(["", " "]).join(generator.choices(words, k=generator.randint(0, 80)))


def attempt(language: Language, source: str) -> str:
    """What went wrong, or nothing."""
    start = time.process_time()
    try:
        language.read(source)
    except EchoError as error:
        if not str(error).strip():
            return "an error without a message"
    except Exception:
        return traceback.format_exc()
    seconds = time.process_time() - start
    return f"it took {seconds:.1f} s" if seconds > SLOW else ""


def _plingua() -> Language:
    from echoc.membranes.plingua import Limits, read, show
    from echoc.membranes.plingua.lexer import KEYWORDS, SIGNS

    limits = Limits(steps=20_000, rules=2_000, cells=2_000, calls=200)

    def attempt_plingua(source: str) -> None:
        show(read("fuzz.pli", text=source, limits=limits))

    path = HERE.parent / "membranes" / "plingua" / "plingua_examples.py"
    spec = importlib.util.spec_from_file_location("plingua_examples", path)
    assert spec is not None and spec.loader is not None
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    words = [*KEYWORDS, *SIGNS, "a", "b", "u", "x{i}", "k{1,2} = 3;", "1", "2", "0.5", '"a*"', "i", "@mu", "@ms(1) ="]
    words += ["@model<transition>", "@model(m) =", "!p {", "def main() {", "[]'1", "[a --> b]'1;", "1 <= i <= 3"]
    words += [
        "@d",
        "@marcs",
        "@include",
        "'1",
        "main()",
        "ceil(",
        "random(3)",
        "&{a} : {1<=i<=2}",
        "/*",
        "*/",
        "//",
        "\n",
        "?",
        "\0",
    ]
    return Language(attempt_plingua, words, list(examples.EVERY.values()))


def _module(name: str, words: str, seeds: Sequence[str]) -> Callable[[], Language]:
    """A language whose module `echoc.membranes.<name>` has `read(path, *, text)`."""

    def make() -> Language:
        module = importlib.import_module(f"echoc.membranes.{name}")
        return Language(lambda source: module.read(f"fuzz.{name}", text=source), words.split(), seeds)

    return make


LANGUAGES: dict[str, Callable[[], Language]] = {
    "plingua": _plingua,
    "sbml": readers.sbml,
    "topology": readers.topology,
    "trace": readers.trace,
    "trees": readers.trees,
    "tableau": readers.tableau,
    "kplingua": _module(
        "kplingua",
        "type { } max choice arbitrary . , ; -> - : a b 2a >= <= = < > & | ! ( ) [ ] # @ A B m1 in out \\- /* */ 99",
        [
            "type A {\n  max {\n    >= 2a & < b: 2a, b -> c, {d}(B) .\n  }\n"
            "  choice { d -> # . a -> [b](A) [c](A) . }\n}\n"
            "type B { arbitrary { a -> b . } }\nm1 {3a, b} (A) - m2 {} (B) .\n"
        ],
    ),
    "pep": _module(
        "pep",
        "num_ps = { } ; H M1 M2 structure [1 ]1 : var pr var0 { x e -> | + * / ( ) 1 2.5 , enzyme ^ -",
        [
            "num_ps = {\n  H = {1, 2};\n  structure = [1 [2 ]2 ]1;\n"
            "  1 = { var = {x}; pr = { 2*x + 1 -> 1|x + 1|y }; var0 = (1) };\n"
            "  2 = { var = {y}; E = {e}; pr = { y (e ->) 1|x }; var0 = (2); var0e = (3) };\n}\n"
        ],
    ),
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="for each language")
    options.add_argument("--language", choices=[*LANGUAGES, "all"], default="all")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--failure", type=Path, default=Path("fuzz_failure.txt"), help="where a failing input goes")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name in LANGUAGES if given.language == "all" else [given.language]:
        language = LANGUAGES[name]()
        generator = random.Random(given.seed)
        end, count = time.monotonic() + given.seconds, 0
        while time.monotonic() < end:
            source, kind = generator.choice(list(language.seeds)), generator.random()
            if kind < 0.5 and language.change is not None:
                source = language.change(source, generator)
            elif kind < 0.85:
                source = mutate(source, language.words, generator)
            else:
                source = soup(language.words, generator)
            count += 1
            problem = attempt(language, source)
            if problem:
                given.failure.write_bytes(source.encode("utf-8", "surrogatepass"))
                print(f"{name}: input {count} (seed {given.seed}), written to {given.failure}:\n{problem}")
                return 1
        print(f"{name}: {count} inputs, each read or refused by an EchoError")
    return 0


if __name__ == "__main__":
    sys.exit(main())

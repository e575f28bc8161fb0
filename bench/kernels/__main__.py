"""Every micro-kernel beside the limits of this machine: `python -m echoc.bench.kernels`.

Builds the tiles (one line for each format of weights and number of rows: streams at few rows, products at many) and
attention (decode and prefill) at every instruction level that this CPU has, and runs them one after another. Each
program measures its limits in the same run: reads, and the peaks of its multiply-add and dot instructions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from echoc.bench.machine import available_cpus, describe_machine
from echoc.bench.probes import find_compiler
from echoc.errors import EchoError

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
AVX512 = ["-march=x86-64-v4", "-mtune=native"]
# Level: what the CPU must have, by the names of /proc/cpuinfo, and what the compiler is told.
LEVELS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "avx2": (("avx2", "fma", "f16c"), ["-march=x86-64-v3", "-mtune=native"]),
    "avx512": (("avx512f", "avx512bw", "avx512vl"), AVX512),
    "avx512-vnni": (("avx512_vnni",), [*AVX512, "-mavx512vnni"]),
    "avx512-bf16": (("avx512_bf16", "avx512_vnni"), [*AVX512, "-mavx512vnni", "-mavx512bf16"]),
    "native": ((), ["-march=native"]),
}


def available_levels(features: Sequence[str]) -> list[str]:
    """The levels that a CPU with these features runs, slowest first; native is always there."""
    return [level for level, (needed, _) in LEVELS.items() if set(needed) <= set(features)]


def build_and_run(level: str, sources: Sequence[Path], options: Sequence[str], arguments: Sequence[str]) -> None:
    """Compiles a benchmark for a level and runs it; what it prints goes to stdout."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kernels"
        command = [find_compiler(), *FLAGS, *LEVELS[level][1], *options, *map(str, sources), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise EchoError(f"{sources[0].name} does not compile for {level}: {' '.join(command)}\n{built.stderr}")
        done = subprocess.run([program, *arguments], check=False)
        if done.returncode != 0:
            raise EchoError(f"{sources[0].name} for {level} ended with status {done.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where a level failed, the others are run all the same."""
    machine = describe_machine()
    known = available_levels(machine.features)
    parser = argparse.ArgumentParser(prog="python -m echoc.bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--levels", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--formats", default="f32,bf16,i8,i4", help="of weights; also bf16c, f8, i8g128, i4g128")
    parser.add_argument("--rows", default="1,8,512")
    parsed = parser.parse_args(arguments)
    levels = parsed.levels.split(",")
    if unknown := [level for level in levels if level not in known]:
        parser.error(f"{', '.join(unknown)}: this CPU runs {', '.join(known)}")
    print(f"{machine.cpu}, {parsed.threads} threads; {', '.join(machine.features)}; {machine.compiler}", flush=True)
    here, status = Path(__file__).parent, 0
    tiles = [here / "tiles_bench.cpp", *sorted((ROOT / "kernels" / "cpu").glob("tiles_*.cpp"))]
    attend = ["-iquote", str(ROOT / "kernels" / "cpu"), f"-I{ROOT}"]
    for level in levels:
        for name, sources, options, given in (
            ("tiles", tiles, [f"-I{ROOT}"], [str(parsed.threads), parsed.formats, parsed.rows]),
            ("attention", [here / "attend.cpp"], attend, [str(parsed.threads)]),
        ):
            print(f"\n{level}, {name}", flush=True)
            try:
                build_and_run(level, sources, options, given)
            except EchoError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

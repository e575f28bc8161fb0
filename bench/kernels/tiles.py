"""Builds tiles_bench.cpp for a feature level with the system's compiler and runs it.

python bench/kernels/tiles.py [--level native] [--threads N] [--formats bf16,i8,i4] [--rows 1,8,512]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-pthread"]


def main() -> int:
    """Returns the exit code of the compiler if that fails, else of the bench."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--level", default="native", help="what -march takes; further flags follow after a comma")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--formats", default="f32,bf16,i8,i4", help="also f8, i8g128, i4g128")
    parser.add_argument("--rows", default="1,2,4,8,16,64,512")
    args = parser.parse_args()
    sources = [Path(__file__).with_name("tiles_bench.cpp"), *sorted((ROOT / "kernels" / "cpu").glob("tiles_*.cpp"))]
    level, *more = args.level.split(",")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tiles_bench"
        command = [*os.environ.get("CXX", "g++").split(), *FLAGS, f"-march={level}", *more, f"-I{ROOT}"]
        built = subprocess.run([*command, *map(str, sources), "-o", str(program)], check=False)
        if built.returncode != 0:
            return built.returncode
        return subprocess.run([program, str(args.threads), args.formats, args.rows], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

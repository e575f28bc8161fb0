"""Kernels run in Triton's interpreter, which is chosen before triton is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("ops", "models", "fuzz")]  # cases that others use
os.environ["TRITON_INTERPRET"] = "1"

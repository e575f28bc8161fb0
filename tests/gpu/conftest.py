"""Kernels run in Triton's interpreter, which is chosen before triton is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # the cases of every op
os.environ["TRITON_INTERPRET"] = "1"

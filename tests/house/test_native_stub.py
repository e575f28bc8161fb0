"""The committed types of the native extension are those of the extension that was built."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "src" / "echoc" / "_native.pyi"


def test_the_stub_is_what_the_extension_says(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "echoc._native", "-o", str(fresh)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = "python -m nanobind.stubgen -m echoc._native -o src/echoc/_native.pyi"
    assert fresh.read_text(encoding="utf-8") == STUB.read_text(encoding="utf-8"), f"run: {again}"

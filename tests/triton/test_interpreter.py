"""The kernels under Triton's interpreter, against the float64 oracle.

The interpreter is chosen when triton is first imported, hence the processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

CASES = Path(__file__).parent / "interpreted"


def interpret(name: str, tmp_path: Path, marks: str) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", marks, "-p", "no:cacheprovider",
               "--rootdir", str(CASES), str(CASES / f"cases_{name}.py")]  # fmt: skip
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", ["dense", "sparse", "strides"])
def test_interpreted(name: str, tmp_path: Path) -> None:
    interpret(name, tmp_path, "not full")


@pytest.mark.full
@pytest.mark.parametrize("name", ["dense", "strides"])
def test_interpreted_in_full(name: str, tmp_path: Path) -> None:
    interpret(name, tmp_path, "full")

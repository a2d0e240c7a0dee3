"""The random calls of tests/random_calls on a card, few of them; many, with counts:

python tests/random_calls/run.py --device cuda --backend hopper,triton --count 2000
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).resolve().parents[1] / "random_calls" / "run.py"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("backend", ["hopper", "triton"])
def test_random_calls(backend: str) -> None:
    command = [sys.executable, str(RUN), "--device", "cuda", "--backend", backend]
    found = subprocess.run([*command, "--count", "64", "--kernels", "4"], capture_output=True,
                           text=True)  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr

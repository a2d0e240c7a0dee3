"""The launcher through the real cuda-bindings, over a CUDA driver that launches nothing.

The cases (launcher_*.py) run in a process of their own, where that driver answers to
libcuda.so.1: a process that has loaded it is of no use to any other test.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent


def test_launches_are_what_the_kernel_expects(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    if torch.version.cuda:
        pytest.skip("a CUDA build of torch would load the stand-in driver too")
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run([*command, str(HERE / "fake_driver.c"), "-ldl"], check=True)
    files = [
        str(HERE / name)
        for name in (
            "launcher_cases.py",
            "launcher_failures.py",
            "launcher_lists.py",
            "launcher_quantised.py",
        )
    ]
    done = subprocess.run(
        [
            "env", f"LD_LIBRARY_PATH={tmp_path}", f"PYTHONPATH={HERE}",
            sys.executable, "-m", "pytest", "-q", "-p", "launcher_fakes", *files,
        ],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

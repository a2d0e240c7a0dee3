"""``pytest --pyargs flashmla_hub.conformance``, from a checkout, and what it makes of outcomes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pytest_run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "flashmla_hub.conformance.options",
         "-p", "no:cacheprovider", "--pyargs", "flashmla_hub.conformance", *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_wrong_one_is_told_why(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt"
    listed.write_text("core/h16-flat | base 2 until the next release\n")
    done = pytest_run(tmp_path, "--call", "tests.conformance.ports:base_2", "--known-failures",
                      str(listed), "-k", "core and h16 or claims-readable")  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "core/h16-peaked failed: C1.8 - LSE in base 2" in done.stdout
    assert "1 failed, 1 passed, " in done.stdout
    assert "1 xfailed" in done.stdout


def test_nobody_to_judge_is_said(tmp_path: Path) -> None:
    done = pytest_run(tmp_path, "-k", "smoke")
    assert done.returncode != 0
    assert "give one of --backend NAME and --call module:function" in done.stdout + done.stderr

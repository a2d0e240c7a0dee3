"""What ptxas makes of the kernels: no spills, no serialised wgmma, setmaxnreg honoured."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashmla_hub.backends.hopper.units import CSRC, Unit
from flashmla_hub.backends.hopper.variants import Variant, all_variants

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")

# C7508 setmaxnreg ignored; C7510, C7518, C7519, C7520 wgmma serialised or fenced by the compiler
WARNINGS = re.compile(r"C75(08|10|18|19|20)")


def compile_log(unit: Unit, folder: Path) -> str:
    command = [
        str(NVCC), "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v",
        "-I", str(CSRC), *(f"-D{d}" for d in unit.defines), "-cubin", str(CSRC / unit.source),
        "-o", str(folder / f"{unit.name}.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check_resources(units: list[Unit], folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        logs = pool.map(lambda unit: compile_log(unit, folder), units)
        for unit, log in zip(units, logs, strict=True):
            spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
            assert spills, f"{unit.name}: no resource report in {log}"
            assert set(spills) == {"0"}, f"{unit.name}: {log}"
            assert not WARNINGS.search(log), f"{unit.name}: {log}"


def test_each_choice(tmp_path: Path) -> None:
    """Both values of every macro, one flipped at a time."""
    chosen = [
        Variant(),
        Variant(gathered=True),
        Variant(batch_invariant=True),
        Variant(fp16=True, d_qk=512),
    ]
    check_resources([v.decode for v in chosen] + [v.combine for v in chosen[::2]], tmp_path)


@pytest.mark.full
def test_every_instantiation(tmp_path: Path) -> None:
    units = {u.name: u for v in all_variants() for u in (v.decode, v.combine)}
    check_resources(list(units.values()), tmp_path)

"""Every target's kernels compile, fit the target's shared memory and do not spill in earnest.

No device is needed. Each target is compiled by the command that prints the table, in a process
and a cache of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950",
           "64KiB"]  # fmt: skip

# Bytes of stack (NVIDIA) or registers (AMD) a kernel may spill: outside the loops, or a few
# around them. Kernels that are not listed may not spill.
SPILLS = {
    ("sm_90", "rows 32 page 16"): 96,
    ("sm_90", "rows 128 page 16"): 704,
    ("sm_90", "sparse bf16 128"): 512,
    ("sm_90", "prefill 128"): 512,
    ("sm_90", "sparse v32 128"): 400,
    ("sm_90", "dense v32 128"): 400,
    ("sm_90", "sparse model1 128"): 400,
    ("sm_90", "sparse model1 16"): 96,
    ("sm_90", "sparse v41 128"): 256,
    ("sm_90", "sparse v41+v41_fp4 128"): 512,
    ("sm_90", "dense fp8 16"): 96,
}
A_FEW = 64

# Gluon forms: products, copies and bytes that may be spilled. Tokens as rows: 36 products for the
# scores, 32 for the output; two tiles before the loop and one in it with 36 copies each, two
# queries with 9. Pairs of tiles: for each warpgroup 36 for the scores of its tile, 8 for its half
# of the output; 300 bytes more or less are a quarter of their speed (see hopper_gluon.py). Lists:
# the same products; before the loop and in it two halves of 16 copies a warpgroup, and 4 for rope
# columns; none for FP8, which spills most on 3.9, four words of it in the loops.
GLUON = {
    "rows 16": (68, "cp.async", 126, 0),
    "rows 16 page 16": (68, "cp.async", 126, 0),
    "rows 32": (88, "tma", 12, A_FEW),
    "rows 128": (88, "tma", 12, A_FEW),
    "rows 256 causal": (88, "tma", 12, A_FEW),
    "sparse v32 128": (88, "cp.async", 0, 256),
    "prefill 128": (88, "cp.async", 144, A_FEW),
}


def compiled(tmp_path: Path, target: str, *variants: str) -> dict[str, dict]:
    """The first main kernel of each variant (of each target for several), as the command reports
    it: the Gluon form where there is one."""
    command = [sys.executable, "-m", "flashmla_hub.backends.triton.aot", "--json"]
    command += ["--targets", target, *(["--variants", ",".join(variants)] if variants else [])]
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.stdout, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    for row in rows:
        assert row["shared"] <= row["shared_limit"], row
        if row["kernel"].startswith("combine"):
            assert row["spill"] <= A_FEW, row
        elif row["kernel"].startswith("sparse by"):  # bytes at a time: right, and slow
            assert row["resident"] >= 1, row
        else:
            assert row["spill"] <= SPILLS.get((row["target"], row["variant"]), A_FEW), row
            assert row["resident"] >= 1, row
    assert run.returncode == 0, run.stderr
    return {row["variant" if "," not in target else "target"]: row for row in reversed(rows)}


def test_the_commonest_kernel_on_a_target_of_each_kind(tmp_path: Path) -> None:
    found = compiled(tmp_path, "sm_80,sm_89,sm_120,gfx942,64KiB", "rows 16")
    assert len(found) == 5
    assert not any(row["spill"] for row in found.values())


def test_hopper_keeps_its_copies_and_matrix_instructions(tmp_path: Path) -> None:
    """Compiler versions have silently lost them: on 3.7 one code shape had no cp.async at all, and
    the dots of 64 rows were computed twice."""
    found = compiled(tmp_path, "sm_90", "sparse bf16 16", *GLUON)
    assert found["sparse bf16 16"]["counts"]["cp.async"] == 54  # three tiles of 18 copies
    for variant, (wgmma, kind, copies, spill) in GLUON.items():
        gluon = found[variant]
        assert gluon["kernel"] == "gluon", variant
        assert gluon["counts"]["wgmma"] == wgmma, variant
        assert gluon["counts"][kind] == copies, variant
        assert gluon["spill"] <= spill, variant


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel(target: str, tmp_path: Path) -> None:
    compiled(tmp_path, target)

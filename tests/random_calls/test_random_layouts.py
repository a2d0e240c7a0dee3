"""Random calls over shapes, strides, addresses, views, layouts and page sizes: right or refused
with a public error, by torch and by triton (under its interpreter)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import placing
import pytest
import run
import torch
from drawn import draw

RUN = Path(run.__file__)
CPU = torch.device("cpu")


def interpreted(count: int, seed: int, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, str(RUN), "--backend", "triton", "--count", str(count),
               "--seed", str(seed)]  # fmt: skip
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"triton on cpu: {count} calls" in found.stdout


def test_torch() -> None:
    assert run.main(["--count", "150"]) == 0


def test_triton(tmp_path: Path) -> None:
    interpreted(24, 0, tmp_path)


@pytest.mark.full
def test_torch_in_full() -> None:
    assert run.main(["--count", "3000", "--seed", "1000"]) == 0


@pytest.mark.full
def test_triton_in_full(tmp_path: Path) -> None:
    interpreted(800, 1000, tmp_path)


def test_a_wrong_result_is_seen(monkeypatch) -> None:
    """The check is not idle: a result off by 2 % in one head fails."""
    import judging

    honest = judging._run

    def off(call, backend):
        results = honest(call, backend)
        results[0][..., -1, :] *= 1.02
        return results

    monkeypatch.setattr(judging, "_run", off)
    verdicts = [judging.judge(seed, "torch", CPU)[0] for seed in range(40)]
    assert verdicts.count("WRONG") > 10


def test_the_same_seed_draws_the_same_call() -> None:
    for seed in range(8):
        a, b = draw(seed, CPU), draw(seed, CPU)
        assert a.facts == b.facts
        for x, y in zip(a.inputs, b.inputs, strict=True):
            assert x.stride() == y.stride()
            assert placing.same_bits(x.resolve_neg(), y.resolve_neg())


def test_calls_of_one_kernel_differ_in_the_rest() -> None:
    a, b = (draw(seed, CPU, kernels=5) for seed in (3, 8))
    assert a.facts == b.facts
    assert [x.shape for x in a.inputs] != [x.shape for x in b.inputs] or not all(
        map(torch.equal, a.inputs, b.inputs)
    )

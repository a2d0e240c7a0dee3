"""The torch backend against the oracle over seeded random calls (contract C1, C3, C4)."""

from __future__ import annotations

import oracle
import pytest
import torch
from torch_calls import (
    expect_dense,
    expect_prefill,
    expect_sparse,
    run_dense,
    run_prefill,
    run_sparse,
)
from torch_cases import (
    dense_inputs,
    prefill_inputs,
    random_dense,
    random_prefill,
    random_sparse,
    sparse_inputs,
)

SEEDS = [
    *range(40),
    *(pytest.param(seed, marks=pytest.mark.full) for seed in range(40, 600)),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_dense_decode(seed: int) -> None:
    case = random_dense(seed)
    inputs = dense_inputs(case)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    out, lse = run_dense(case, inputs)
    oracle.check(out, lse, expect_dense(case, inputs), case)
    for name, tensor in inputs.items():
        same = torch.equal(_bits(tensor), _bits(before[name]))
        assert same, f"{case}: {name} was changed"


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_decode(seed: int) -> None:
    case = random_sparse(seed)
    inputs = sparse_inputs(case)
    out, lse = run_sparse(case, inputs)
    oracle.check(out, lse, expect_sparse(case, inputs), case)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_prefill(seed: int) -> None:
    case = random_prefill(seed)
    inputs = prefill_inputs(case)
    out, max_logits, lse = run_prefill(case, inputs)
    expected = expect_prefill(case, inputs)
    oracle.check(out.unsqueeze(1), lse.unsqueeze(-1), expected, case)
    wanted = expected.max_logits.squeeze(-1)
    torch.testing.assert_close(max_logits.double(), wanted, rtol=2e-6, atol=2e-6)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN compares unequal to itself; its bytes do not."""
    return tensor.contiguous().view(torch.uint8)

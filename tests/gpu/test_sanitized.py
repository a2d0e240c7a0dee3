"""A small set for compute-sanitizer: every variant once, on shapes that take each path."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import Case, needs_hopper, run_and_check

pytestmark = [pytest.mark.gpu, needs_hopper]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("page", [64, 16])
@pytest.mark.parametrize("invariant", [False, True])
def test_variant(dtype: torch.dtype, d_qk: int, page: int, invariant: bool) -> None:
    case = Case((0, 1, 65, 3000), s_q=2, h_q=48, dtype=dtype, d_qk=d_qk, page=page)
    run_and_check(case, batch_invariant=invariant)


def test_many_requests() -> None:
    run_and_check(Case((100,) * 400, h_q=16))


@pytest.mark.parametrize("case", [Case((64, 0, 3), h_q=16), Case((3000, 70), h_q=70 * 64)])
def test_nothing_can_be_split(case: Case) -> None:
    run_and_check(case)

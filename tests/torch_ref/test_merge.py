"""merge_states: parts of the keys, whole attention (contract C7.1)."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from torch_calls import expect_dense, run_dense
from torch_cases import Case, dense_inputs

from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.merge import merge_states


def _parts(case: Case, inputs: dict, cuts: list[list[int]]) -> list:
    """Attention over each run of pages; ``cuts`` are lists of page numbers, one list a row."""
    parts = []
    starts = [0] * len(case.lens)
    for ends in cuts:
        width = inputs["block_table"].shape[1]
        table = torch.full((len(starts), width), -1, dtype=torch.int32)
        lens = []
        for b, (start, end) in enumerate(zip(starts, ends, strict=True)):
            pages = inputs["block_table"][b, start:end]
            table[b, : len(pages)] = pages
            lens.append(max(min(case.lens[b] - start * case.page, (end - start) * case.page), 0))
        seqlens = torch.tensor(lens, dtype=torch.int32)
        shard = inputs | {"block_table": table, "cache_seqlens": seqlens}
        parts.append(run_dense(case, shard))
        starts = ends
    return parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lopsided_parts_merge_into_the_whole(dtype: torch.dtype) -> None:
    case = Case(1, dtype=dtype, lens=(1000, 70, 0, 64), h_q=8, page=16)
    inputs = dense_inputs(case)
    parts = _parts(case, inputs, [[2, 0, 0, 4], [3, 5, 0, 4], [63, 5, 0, 4]])
    out, lse = merge_states(*zip(*parts, strict=True))
    assert out.dtype == dtype and lse.dtype == torch.float32
    oracle.check(out, lse, expect_dense(case, inputs), case)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_part_that_saw_nothing_is_never_multiplied(bad: float) -> None:
    good, good_lse = torch.randn(2, 1, 3, 8), torch.randn(2, 3, 1) * 50
    poison, bad_lse = torch.full_like(good, math.nan), torch.full_like(good_lse, bad)
    for outs, lses in (
        ((good, poison), (good_lse, bad_lse)),
        ((poison, good), (bad_lse, good_lse)),
    ):
        out, lse = merge_states(outs, lses)
        torch.testing.assert_close(out, good, rtol=1e-6, atol=0)
        assert torch.equal(lse, good_lse)
    out, lse = merge_states([poison, poison], [bad_lse, torch.full_like(bad_lse, math.inf)])
    assert not out.any() and lse.isposinf().all()


def test_large_lse_does_not_overflow() -> None:
    outs = [torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)]
    lses = [torch.full((1, 1, 1), 2e4), torch.full((1, 1, 1), 2e4)]
    out, lse = merge_states(outs, lses)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))
    assert lse.item() == pytest.approx(2e4 + math.log(2))
    out, _ = merge_states(outs, [lses[0], lses[1] - 1e4])
    assert not out.any()


def test_wrong_shapes_are_named() -> None:
    out, lse = torch.zeros(2, 1, 3, 4), torch.zeros(2, 3, 1)
    with pytest.raises(InvalidRequestError, match="0 outs"):
        merge_states([], [])
    with pytest.raises(InvalidRequestError, match=r"outs\[1\]"):
        merge_states([out, out[:1]], [lse, lse])
    with pytest.raises(InvalidRequestError, match=r"lses\[1\]"):
        merge_states([out, out], [lse, lse.transpose(1, 2)])
    with pytest.raises(InvalidRequestError, match=r"outs\[0\]"):
        merge_states([out[0]], [lse])

"""Dense decode under the interpreter: every form of the kernel on small cases."""

from __future__ import annotations

import pytest
import torch
from calls import dense

from flashmla_hub.backends.triton.config import Config

TAIL_APART = Config(16, 32, 8, 3, split_tail=1)
HOPPER_64 = Config(64, 64, 8, 2, split_tail=1, break_chain=True, spread=True)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_empty_short_and_split_rows(parts: int) -> None:
    dense([65, 0, 130, 1], h_q=3, parts=parts)


def test_one_long_row_in_many_parts() -> None:
    dense([300], h_q=2, parts=9)


def test_whole_requests_balance_and_nothing_is_split() -> None:
    dense([128] * 2, h_q=4, parts=2)


def test_nothing_but_empty_rows() -> None:
    dense([0, 0], s_q=2, h_q=8, parts=2)


def test_lengths_outside_the_table_are_clamped() -> None:
    out, lse = dense([-3, 5], h_q=2, parts=2)
    assert not out[0].any()
    assert lse[0].isposinf().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("s_q", "h_q"), [(2, 9), pytest.param(3, 24, marks=pytest.mark.full)])
def test_several_query_tokens(s_q: int, h_q: int, causal: bool) -> None:
    dense([1, 70, 2], s_q=s_q, h_q=h_q, causal=causal, parts=3)


@pytest.mark.parametrize("page", [1, 16, 48, 128])
def test_page_sizes(page: int) -> None:
    dense([65, 0, 30], h_q=4, page=page, parts=2)


@pytest.mark.parametrize(("d", "d_v"), [(512, 512), (320, 256)])
def test_head_dims(d: int, d_v: int) -> None:
    dense([130, 10], h_q=4, dims=(d, d_v), parts=2)


def test_float16() -> None:
    dense([65, 0, 130], h_q=4, dtype="float16", parts=3)


def test_several_kv_heads() -> None:
    dense([65, 0, 70], h_q=4, h_kv=2, s_q=2, causal=True, parts=4)


@pytest.mark.parametrize("config", [TAIL_APART, HOPPER_64], ids=["tail apart", "64 rows"])
@pytest.mark.parametrize("page", [64, pytest.param(16, marks=pytest.mark.full)])
def test_masked_tail_apart(config: Config, page: int) -> None:
    dense([65, 0, 70, 1], s_q=2, h_q=9, causal=True, config=config, page=page, parts=4)


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "gfx942", "gfx950", "unknown"])
def test_configs_of_other_targets(arch: str) -> None:
    dense([65, 0, 70], h_q=20, arch=arch)


@pytest.mark.parametrize("scale", [-0.05, 0.0])
def test_scales_that_are_not_positive(scale: float) -> None:
    dense([65, 10], h_q=2, scale=scale, parts=2)


def test_batch_invariant_form_splits_by_a_rows_own_length() -> None:
    config = Config(16, 16, 8, 1)  # 128 blocks of 16 tokens to a chunk
    lens = [130, 0, 2100]
    out, lse = dense(lens, h_q=2, invariant=True, parts=5, config=config)
    again, lse_again = dense(lens, h_q=2, invariant=True, parts=2, config=config)
    assert torch.equal(out, again)
    assert torch.equal(lse, lse_again)

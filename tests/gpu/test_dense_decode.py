"""The Hopper dense decode kernel against a float64 oracle, on the card, through the public call."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_cases import (
    Case,
    check,
    decode,
    make,
    needs_hopper,
    oracle,
    random_lengths,
    run_and_check,
)

pytestmark = [pytest.mark.gpu, needs_hopper]

EDGES = (0, 1, 63, 64, 65, 127, 128, 129, 1000, 4097)
FP16 = torch.float16


@pytest.mark.parametrize("h_q", [1, 8, 12, 16, 17, 48, 64, 65, 96, 127, 128, 130])
def test_row_tails(h_q: int) -> None:
    """Rows that do not fill a tile, tiles that hang over."""
    run_and_check(Case(EDGES, h_q=h_q, seed=h_q))


@pytest.mark.parametrize("s_q", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("h_q", [9, 16, 64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_query_tokens(s_q: int, h_q: int, causal: bool) -> None:
    """Fully masked rows (length below s_q), borders inside a tile that spans tokens."""
    case = Case((0, 1, 2, 3, 4, 16, 64, 66, 500), s_q=s_q, h_q=h_q, causal=causal, seed=s_q)
    run_and_check(case)


@pytest.mark.parametrize(
    "lengths",
    [(0,), (0, 0, 0), (1,), (64,) * 3, (-5, 100, 64, 10**6), (2**31 - 1, 1)],
    ids=str,
)
def test_lengths_outside_the_table(lengths: tuple[int, ...]) -> None:
    """Empty batches, negative lengths, lengths past what a block_table row can hold."""
    t = make(Case(tuple(min(n, 192) for n in lengths), h_q=16))
    pages = t.cache.shape[0]
    spread = torch.arange(t.table.numel(), device="cuda", dtype=torch.int32) % pages
    t.table.copy_(spread.view_as(t.table))
    t.cache.nan_to_num_(0.25)
    t.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
    out, lse = decode(t)
    check(out, lse, oracle(t), lengths)


@pytest.mark.parametrize(
    ("batch", "h_q", "s_q", "top"),
    [
        (1, 16, 1, 32768), (1, 128, 1, 100001), (2, 128, 1, 5000), (8, 16, 1, 8192),
        (32, 16, 1, 9000), (33, 16, 1, 5000), (40, 128, 1, 5000), (64, 128, 2, 4000),
        (128, 64, 1, 3000), (300, 12, 1, 600), (385, 16, 1, 900), (1000, 64, 1, 300),
        (4096, 16, 1, 130),
    ],
)  # fmt: skip
def test_splits_and_batches(batch: int, h_q: int, s_q: int, top: int) -> None:
    """Every path of the schedule: one warp, block scan, several requests a thread; splits of
    2 to 132 fragments, whole requests."""
    run_and_check(Case(random_lengths(batch, top, batch), h_q=h_q, s_q=s_q, seed=batch))


@pytest.mark.parametrize(("batch", "length"), [(128, 1024), (8, 4096), (16, 2048), (1, 8192)])
def test_equal_lengths(batch: int, length: int) -> None:
    run_and_check(Case((length,) * batch, h_q=128, seed=batch))


@pytest.mark.parametrize("page", [1, 2, 3, 4, 8, 16, 32, 48, 64, 100, 128, 192, 256])
@pytest.mark.parametrize("h_q", [16, 128])
def test_page_sizes(page: int, h_q: int) -> None:
    case = Case((0, 1, page, page + 1, 777, 1500), s_q=2, h_q=h_q, page=page, seed=page)
    run_and_check(case)


@pytest.mark.parametrize(
    ("h_q", "h_kv", "s_q"),
    [(128, 2, 1), (126, 3, 2), (128, 8, 4), (9, 3, 4), (126, 2, 1), (192, 2, 3), (64, 64, 1)],
)
@pytest.mark.parametrize("page", [64, 16])
def test_kv_heads(h_q: int, h_kv: int, s_q: int, page: int) -> None:
    case = Case((100, 1, 0, 1000, 64), h_q=h_q, h_kv=h_kv, s_q=s_q, page=page, seed=h_q)
    run_and_check(case)


@pytest.mark.parametrize("page", [64, 128, 16])
@pytest.mark.parametrize(
    ("page_gap", "token_gap"), [(320, 0), (0, 64), (128, 8)], ids=["pages", "tokens", "both"]
)
def test_strided_pools(page: int, page_gap: int, token_gap: int) -> None:
    case = Case(EDGES, s_q=2, h_q=64, page=page, page_gap=page_gap, token_gap=token_gap, seed=page)
    run_and_check(case)


@pytest.mark.parametrize(("h_q", "s_q"), [(16, 1), (16, 2), (96, 3), (128, 2)])
def test_strided_queries(h_q: int, s_q: int) -> None:
    run_and_check(Case(EDGES, h_q=h_q, s_q=s_q, spare_heads=3, seed=h_q))


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("page", [64, 8])
@pytest.mark.parametrize("family", ["flat", "peaked", "extreme"])
def test_families(dtype: torch.dtype, d_qk: int, page: int, family: str) -> None:
    """Input families of C1.12; the extreme one has one huge late token and logits up to 1e4."""
    # No single key among huge logits: its lse is one logit, which may be anywhere near 0, where a
    # relative bound asks for more than float32 sums of large products can hold.
    lengths = (0, 65 if family == "extreme" else 1, 64, 777, 1500, 4000)
    for h_q, s_q in ((64, 1), (128, 2)):
        run_and_check(
            Case(lengths, h_q=h_q, s_q=s_q, dtype=dtype, d_qk=d_qk, page=page, family=family)
        )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("page", [64, 16])
@pytest.mark.parametrize("seed", [0, 1], ids=["tail INT_MAX", "tail -1"])
def test_poison(poison: float, page: int, seed: int) -> None:
    """Unused slots of used pages, unused pages, both garbage values in the table's tail."""
    run_and_check(Case(EDGES, s_q=2, h_q=64, page=page, poison=poison, seed=seed))


def test_equal_logits() -> None:
    t = make(Case((700, 64, 1), h_q=16))
    t.q.zero_()
    out, lse = decode(t)
    check(out, lse, oracle(t), "equal logits")

"""The Triton backend on an accelerator, through the public API: right, repeatable, in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_cases import D_V, Case, make, needs_triton, oracle, random_lengths, same_bits
from oracle import check
from torch import Tensor

import flashmla_hub

pytestmark = [pytest.mark.gpu, needs_triton]

CASES = (
    Case((65, 0, 130, 1, 5000, 64)),
    Case((300, 0, 0, 20000), h_q=12, family="peaked"),
    Case((1000,) * 7, h_q=32, seed=1),
    Case((65, 0, 130, 1, 5000, 64), h_q=128, family="peaked"),
    Case((300, 2, 0, 20000), h_q=128, s_q=2, seed=1),
    Case((300, 0, 777), h_q=128, family="extreme"),
    Case((300, 0, 777), h_q=64, dtype=torch.float16),
    Case((63, 64, 65, 127, 128, 129, 191, 192, 193, 0, 1), h_q=20, family="peaked"),
    Case((63, 64, 65, 127, 128, 129, 191, 192, 193, 0, 1), h_q=16, s_q=2),
    Case((300, 0, 777), h_q=128, page_gap=1152),
    Case((300, 0, 777), h_q=128, page_gap=1152 * 3 + 64),
    Case((300, 0, 777), h_q=16, token_gap=64),
    Case((300, 0, 777), h_q=16, h_kv=2, s_q=3),
    Case((300, 0, 777), page=1),
    Case((300, 0, 777), page=16),
    Case((300, 0, 777), page=256, h_q=128),
    Case((63, 64, 65, 127, 128, 129, 191, 192, 193, 0, 1), page=1, family="peaked"),
    Case((63, 64, 65, 127, 128, 129, 191, 192, 193, 0, 1), page=48, dtype=torch.float16),
    Case((300, 0, 777), family="extreme"),
    Case((300, 0, 777), h_q=16, page=16, page_gap=1152 * 3 + 64, token_gap=64),
    Case((300, 0, 777), d_qk=512),
    Case((-3, 10**6, 5), h_q=48),
    Case(random_lengths(300, 700, 0)),
    Case(random_lengths(300, 130, 4), h_q=8, s_q=2, page=16),
    Case(random_lengths(40, 9000, 5), h_q=64, h_kv=4),
    Case(random_lengths(300, 700, 1), h_q=128),
    Case(random_lengths(300, 700, 2), h_q=32),
    Case(random_lengths(40, 9000, 3), h_q=128, s_q=3),
)


def decode(t, out: Tensor | None = None, lse: Tensor | None = None, **options):
    case = t.case
    shape = (len(t.lengths), case.s_q, case.h_q)
    if out is None:
        out = torch.full((*shape, D_V), math.nan, device="cuda", dtype=case.dtype)
        lse = torch.full((shape[0], case.h_q, case.s_q), math.nan, device="cuda")
    return flashmla_hub.flash_mla_with_kvcache(
        t.q, t.cache, t.table, t.lengths, D_V, causal=case.masked, backend="triton",
        out=out, lse_out=lse, **options,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_with_poison_in_unused_slots(case: Case) -> None:
    t = make(case)
    out, lse = decode(t)
    check(out, lse, oracle(t), case, extreme=case.family == "extreme")


@pytest.mark.parametrize("h_q", [16, 128])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(h_q: int) -> None:
    case = Case((6500, 0, 130, 1, 40000, 64), h_q=h_q, family="peaked")
    t = make(case)
    out, lse = decode(t, batch_invariant=True)
    check(out, lse, oracle(t), case)
    for b in range(len(case.lengths)):
        row = slice(b, b + 1)
        alone, alone_lse = flashmla_hub.flash_mla_with_kvcache(
            t.q[row], t.cache, t.table[row], t.lengths[row], D_V, backend="triton",
            batch_invariant=True,
        )  # fmt: skip
        assert same_bits(alone[0], out[b]), f"row {b} of {case}"
        assert same_bits(alone_lse[0], lse[b]), f"lse of row {b} of {case}"


@pytest.mark.parametrize("h_q", [16, 128])
def test_a_graph_follows_lengths_changed_in_place(h_q: int) -> None:
    t = make(Case((65, 0, 130, 1, 5000, 64), h_q=h_q))
    out, lse = decode(t)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(t, out, lse)
    for lengths in ((0, 0, 100, 1, 4000, 10), (65, 0, 130, 1, 5000, 64)):
        t.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        check(out, lse, oracle(t), (lengths, h_q))


def test_the_first_call_of_a_key_inside_a_capture_is_refused_and_spoils_nothing() -> None:
    t = make(Case((65, 3), h_q=7))
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros(4, device="cuda")
    with torch.cuda.graph(graph):
        x += 1
        with pytest.raises(flashmla_hub.NotSupportedError, match="capture"):
            decode(t)
    graph.replay()
    torch.cuda.synchronize()
    assert x.eq(1).all()


@pytest.mark.parametrize("layout", ["v32", "model1"])
def test_dense_decode_over_an_fp8_cache_matches_the_unquantised_call(layout: str) -> None:
    d_qk = flashmla_hub.kv_format.get(layout).d_qk
    t = make(Case((65, 0, 130, 700), d_qk=d_qk, h_q=64, s_q=2, poison=0.0))
    cache = flashmla_hub.kv_format.quantize(t.cache, layout)
    t.cache = flashmla_hub.kv_format.dequantize(cache, layout)
    out, lse = flashmla_hub.flash_mla_with_kvcache(
        t.q, cache, t.table, t.lengths, D_V, causal=True, is_fp8_kvcache=True, kv_format=layout,
        backend="triton",
    )  # fmt: skip
    check(out, lse, oracle(t), (layout, t.case))

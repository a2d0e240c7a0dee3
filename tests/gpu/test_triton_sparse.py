"""The Triton backend's sparse ops on an accelerator, against the float64 oracle: lists that end
within a pair of tiles, parts of lists that are merged, entries that are not there."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from gpu_cases import needs_triton

import flashmla_hub

D_QK, D_V, PAGE, PAGES = 576, 512, 64, 40
TOKENS = PAGES * PAGE
SCALE = D_QK**-0.5

pytestmark = [pytest.mark.gpu, needs_triton]


def drawn(*shape: int, seed: int) -> torch.Tensor:
    g = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(*shape, generator=g, device="cuda", dtype=torch.bfloat16)
    return x.div_(10).clamp_(-1, 1)


def lists(*shape: int, seed: int) -> torch.Tensor:
    """Entries with repetitions, a tenth below 0 and a few past the cache."""
    g = torch.Generator("cuda").manual_seed(seed)
    entries = torch.randint(0, TOKENS, shape, generator=g, device="cuda", dtype=torch.int32)
    luck = torch.rand(shape, generator=g, device="cuda")
    entries[luck < 0.1] = -1
    entries[luck > 0.99] = TOKENS + 5
    return entries


def decode(q, cache, indices, **options):
    meta, _ = flashmla_hub.get_mla_metadata()
    return flashmla_hub.flash_mla_with_kvcache(
        q, cache, None, None, D_V, meta, None, is_fp8_kvcache=cache.dtype != q.dtype,
        indices=indices, backend="triton", **options,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["v32", "dense"])
@pytest.mark.parametrize(
    ("batch", "s_q", "h_q", "topk", "extras"),
    [
        (3, 1, 128, 1000, False),
        (1, 2, 96, 700, True),
        (5, 1, 64, 300, True),
        (2, 1, 200, 513, False),
        (1, 1, 128, 129, False),
    ],
)
def test_sparse_decode(
    batch: int, s_q: int, h_q: int, topk: int, extras: bool, layout: str
) -> None:
    case = (batch, s_q, h_q, topk, extras, layout, "seed 0")
    q = drawn(batch, s_q, h_q, D_QK, seed=0)
    keys = drawn(PAGES, PAGE, 1, D_QK, seed=1)
    indices = lists(batch, s_q, topk, seed=2)
    used = torch.zeros(TOKENS, dtype=torch.bool, device="cuda")
    used[indices[(indices >= 0) & (indices < TOKENS)].long()] = True
    if layout == "dense":
        cache = keys
        cache.view(-1, D_QK)[~used] = math.nan
    else:
        cache = flashmla_hub.kv_format.quantize(keys, layout)
        cache.view(torch.uint8).view(TOKENS, -1)[~used] = 0x7F
    options = {}
    if extras:
        lengths = [topk, 130, 1, 0, 257][:batch]
        options["topk_length"] = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        options["attn_sink"] = torch.linspace(-2, 6, h_q, device="cuda")
    out, lse = decode(q, cache, indices, **options)
    expected = oracle.sparse_decode(
        q, cache, indices, d_v=D_V, softmax_scale=SCALE, kv_format=layout, **options
    )
    oracle.check(out, lse, expected, case)


@pytest.mark.parametrize(
    ("queries", "h_q", "topk", "extras"),
    [(70, 128, 257, True), (3, 80, 640, False), (2, 64, 1000, True), (140, 48, 64, True)],
)
def test_sparse_prefill(queries: int, h_q: int, topk: int, extras: bool) -> None:
    q = drawn(queries, h_q, D_QK, seed=3)
    kv = drawn(TOKENS, 1, D_QK, seed=4)
    indices = lists(queries, 1, topk, seed=5)
    options = {}
    if extras:
        g = torch.Generator("cuda").manual_seed(6)
        lengths = torch.randint(0, topk + 1, (queries,), generator=g, device="cuda")
        options["topk_length"] = lengths.int()
        options["attn_sink"] = torch.linspace(-2, 6, h_q, device="cuda")
    out, tops, lse = flashmla_hub.flash_mla_sparse_fwd(
        q, kv, indices, SCALE, backend="triton", **options
    )
    expected = oracle.sparse_prefill(q, kv, indices, d_v=D_V, softmax_scale=SCALE, **options)
    case = (queries, h_q, topk, extras, "seed 3")
    oracle.check(out.unsqueeze(1), lse.unsqueeze(2), expected, case)
    top = expected.max_logits.squeeze(-1)
    assert torch.equal(tops.isneginf().cpu(), top.isneginf()), case
    finite = top.isfinite()
    assert (tops.double().cpu() - top)[finite].abs().max() < 1e-4, case


@pytest.mark.parametrize("layout", ["v32", "dense"])
def test_sparse_decode_gives_the_same_bits_each_time(layout: str) -> None:
    q = drawn(37, 1, 128, D_QK, seed=7)
    cache = drawn(PAGES, PAGE, 1, D_QK, seed=8)
    if layout != "dense":
        cache = flashmla_hub.kv_format.quantize(cache, layout)
    indices = lists(37, 1, 2048, seed=9)
    first: tuple[torch.Tensor, ...] = ()
    for i in range(200):
        found = decode(q, cache, indices)
        first = first or found
        assert all(map(torch.equal, first, found)), (i, layout)

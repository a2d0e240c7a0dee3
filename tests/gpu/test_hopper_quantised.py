"""The kernels over quantised caches on a Hopper card, against the float64 oracle: every tile size,
lists that end anywhere, entries that are not there, two caches, splits, bits that repeat."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from gpu_cases import needs_hopper

import flashmla_hub
from flashmla_hub import kv_format

D_V = 512
DIMS = {"v32": 576, "model1": 512}

pytestmark = [pytest.mark.gpu, needs_hopper]


def drawn(*shape: int, seed: int) -> torch.Tensor:
    g = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(*shape, generator=g, device="cuda", dtype=torch.bfloat16)
    return x.div_(10).clamp_(-1, 1)


def entries(*shape: int, tokens: int, seed: int) -> torch.Tensor:
    """Slots with repetitions, a tenth below 0, a few past the cache; the first list has none."""
    g = torch.Generator("cuda").manual_seed(seed)
    slots = torch.randint(0, tokens, shape, generator=g, device="cuda", dtype=torch.int32)
    luck = torch.rand(shape, generator=g, device="cuda")
    slots[luck < 0.1] = -1
    slots[luck > 0.99] = tokens + 5
    slots[0, 0] = -1
    return slots


def poisoned(layout: str, pages: int, page: int, used: torch.Tensor, seed: int) -> torch.Tensor:
    """A cache whose tokens are NaN but for those that the slots ``used`` name."""
    cache = kv_format.quantize(drawn(pages, page, 1, DIMS[layout], seed=seed), layout)
    unused = torch.ones(pages * page, dtype=torch.bool, device="cuda")
    unused[used[(used >= 0) & (used < pages * page)].long()] = False
    for part in kv_format.get(layout).views(cache):
        part[unused.view(pages, page)] = 0x7F
    return cache


def decode(q, cache, *, table=None, lengths=None, **options):
    meta, _ = flashmla_hub.get_mla_metadata()
    return flashmla_hub.flash_mla_with_kvcache(
        q, cache, table, lengths, D_V, meta, None, is_fp8_kvcache=True, backend="hopper", **options
    )


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("layout", ["v32", "model1"])
@pytest.mark.parametrize(
    ("batch", "s_q", "h_q", "topk", "page"),
    [
        (3, 1, 128, 1000, 64),
        (1, 2, 96, 700, 64),
        (5, 1, 8, 300, 53),
        (2, 1, 24, 513, 1),
        (40, 1, 64, 129, 64),
        (150, 1, 16, 640, 16),
    ],
)
def test_sparse_decode(
    batch: int, s_q: int, h_q: int, topk: int, page: int, layout: str, invariant: bool
) -> None:
    case = (batch, s_q, h_q, topk, page, layout, invariant, "seed 0")
    pages = 2560 // page
    slots = entries(batch, s_q, topk, tokens=pages * page, seed=2)
    cache = poisoned(layout, pages, page, slots, seed=1)
    q = drawn(batch, s_q, h_q, DIMS[layout], seed=0)
    options = {"indices": slots}
    if batch > 2:
        lengths = torch.tensor([topk, 130, 1, 0, 257] * 30, dtype=torch.int32, device="cuda")
        options["topk_length"] = lengths[:batch].contiguous()
        options["attn_sink"] = torch.linspace(-2, 6, h_q, device="cuda")
    out, lse = decode(q, cache, batch_invariant=invariant, **options)
    expected = oracle.sparse_decode(
        q, cache, d_v=D_V, softmax_scale=DIMS[layout] ** -0.5, kv_format=layout, **options
    )
    oracle.check(out, lse, expected, case)


@pytest.mark.parametrize("page", [64, 2])
@pytest.mark.parametrize("h_q", [8, 64])
def test_two_caches_as_one_softmax(h_q: int, page: int) -> None:
    batch, s_q = 6, 2
    slots = entries(batch, s_q, 133, tokens=512, seed=3)
    more = entries(batch, s_q, 512, tokens=4096, seed=4)
    cache, extra = (
        poisoned("model1", 8, 64, slots, 5),
        poisoned("model1", 4096 // page, page, more, 6),
    )
    lengths = torch.tensor([133, 0, 64, 128, 5, 1], dtype=torch.int32, device="cuda")
    options = {
        "indices": slots,
        "topk_length": lengths,
        "attn_sink": torch.linspace(-3, 3, h_q, device="cuda"),
        "extra_k_cache": extra,
        "extra_topk_length": lengths.flip(0).contiguous() * 3,
    }
    q = drawn(batch, s_q, h_q, 512, seed=7)
    out, lse = decode(q, cache, extra_indices_in_kvcache=more, **options)
    expected = oracle.sparse_decode(
        q,
        cache,
        d_v=D_V,
        softmax_scale=512**-0.5,
        kv_format="model1",
        extra_indices=more,
        **options,
    )
    oracle.check(out, lse, expected, (h_q, page, "seed 3"))


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize(
    ("s_q", "h_q", "page"), [(1, 16, 64), (2, 128, 64), (3, 5, 48), (1, 32, 1), (4, 16, 64)]
)
def test_dense_decode(s_q: int, h_q: int, page: int, invariant: bool) -> None:
    lengths = (1500, 0, 1, 63, 65, 130, 1000)
    capacity = -(-1536 // page)
    table = torch.arange(len(lengths) * capacity, dtype=torch.int32, device="cuda")
    table = table.flip(0).view(len(lengths), capacity)
    used = [table[i, t // page] * page + t % page for i, n in enumerate(lengths) for t in range(n)]
    cache = poisoned("v32", table.numel(), page, torch.stack(used), seed=8)
    q = drawn(len(lengths), s_q, h_q, 576, seed=9)
    lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    out, lse = decode(
        q, cache, table=table, lengths=lens, causal=s_q > 1, batch_invariant=invariant
    )
    expected = oracle.dense_decode(
        q, cache, table, lens, d_v=D_V, softmax_scale=576**-0.5, causal=s_q > 1, kv_format="v32"
    )
    oracle.check(out, lse, expected, (s_q, h_q, page, invariant, "seed 8"))


@pytest.mark.parametrize("power", [-60, 40])
def test_queries_of_any_size(power: int) -> None:
    """Q meets fp16 operands: its rows are brought into their range, and back."""
    slots = entries(3, 1, 400, tokens=2560, seed=10)
    cache = poisoned("v32", 40, 64, slots, seed=11)
    q = drawn(3, 1, 16, 576, seed=12)
    scale = 576**-0.5
    out, lse = decode(q, cache, indices=slots, softmax_scale=scale)
    moved = decode(q * 2.0**power, cache, indices=slots, softmax_scale=math.ldexp(scale, -power))
    assert torch.equal(out, moved[0]), power
    assert torch.equal(lse, moved[1]), power


def test_the_same_bits_each_time() -> None:
    slots = entries(37, 1, 2048, tokens=2560, seed=13)
    cache = poisoned("v32", 40, 64, slots, seed=14)
    q = drawn(37, 1, 128, 576, seed=15)
    first = decode(q, cache, indices=slots)
    for i in range(100):
        assert all(map(torch.equal, first, decode(q, cache, indices=slots))), i

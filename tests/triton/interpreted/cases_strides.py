"""Strides, addresses and views of every tensor under the interpreter, each right to the bit: what a
packed copy of the same values gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from calls import device, kernel
from torch import Tensor

from flashmla_hub import kv_format
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.request import SPARSE_DECODE, SPARSE_PREFILL, KernelKey

FAR = 2**31 + 64  # elements: past what 32 bits address
LAYOUTS = ["dense", "v32", "model1"]
PLACES = {  # page, token and base, in elements of 2 bytes or bytes of FP8 layouts
    "token record beside": (0, 132, 0),
    "page padded by little": (4, 0, 0),
    "page padded by an odd count": (3, 0, 0),
    "base in between": (0, 0, 8),
    "base and tokens odd": (5, 1, 3),
}


def some(values: Iterable[Any], *always: Any) -> list[Any]:
    """``values`` as parameters, all but ``always`` in the full form only."""
    full = pytest.mark.full
    return [v if v in always else pytest.param(v, marks=full) for v in values]


def placed(cache: Tensor, layout: str, place: str) -> Tensor:
    """``cache`` in a pool with other strides and another base, garbage around."""
    page, token, base = PLACES[place]
    pages, size, _, width = cache.shape
    if layout == "model1" and size > 1:
        token = 0  # its tokens are at fixed places of a page
    packed = size * width if layout == "dense" else kv_format.get(layout).page_stride(size)
    row = width + token
    step = max(packed, size * row) + page
    pool = torch.full((base + pages * step,), 0x7F, dtype=torch.uint8)
    values = cache
    if layout == "dense":
        pool = torch.full((base + pages * step,), 7.0, dtype=cache.dtype)
    else:
        values = cache.view(torch.uint8)
    view = pool.as_strided(values.shape, (step, row, row, 1), base)
    if layout == "dense":
        return view.copy_(values)
    for mine, theirs in zip(
        kv_format.get(layout).views(view), kv_format.get(layout).views(values), strict=True
    ):
        mine.copy_(theirs)
    return view


def pool(layout: str, pages: int, size: int, g: torch.Generator) -> Tensor:
    d = 576 if layout == "dense" else kv_format.get(layout).d_qk
    k = torch.randn(pages, size, 1, d, generator=g).bfloat16()
    return k if layout == "dense" else kv_format.quantize(k, layout)


@pytest.mark.parametrize("place", some(PLACES, "token record beside", "base and tokens odd"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_caches_of_a_sparse_call(layout: str, place: str) -> None:
    g = torch.Generator().manual_seed(0)
    cache, extra = pool(layout, 3, 16, g), pool(layout, 9, 2, g)
    d = 576 if layout == "dense" else kv_format.get(layout).d_qk
    key = KernelKey(
        op=SPARSE_DECODE, h_q=4, d_qk=d, page_block_size=16, kv_format=layout, topk=20,
        extra_topk=12, extra_page_block_size=2,
    )  # fmt: skip
    q = torch.randn(2, 1, 4, d, generator=g).bfloat16()
    slots = torch.randint(0, 48, (2, 1, 20), generator=g, dtype=torch.int32)
    more = torch.randint(0, 18, (2, 1, 12), generator=g, dtype=torch.int32)
    bound = kernel(key, device())

    def run(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return bound.run(
            SparseDecode(q, first, slots, 0.05, extra_k_cache=second, extra_indices=more)
        )

    want = run(cache, extra)
    moved, extra_moved = placed(cache, layout, place), placed(extra, layout, place)
    for found in (run(moved, extra), run(cache, extra_moved), run(moved, extra_moved)):
        assert all(map(torch.equal, want, found)), (layout, place)


@pytest.mark.parametrize("place", some(PLACES, "base and tokens odd"))
@pytest.mark.parametrize("layout", ["v32", "model1"])
def test_fp8_caches_of_a_dense_call(layout: str, place: str) -> None:
    g = torch.Generator().manual_seed(1)
    d = kv_format.get(layout).d_qk
    cache = pool(layout, 4, 16, g)
    key = KernelKey(h_q=4, d_qk=d, page_block_size=16, kv_format=layout)
    q = torch.randn(2, 1, 4, d, generator=g).bfloat16()
    table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
    lens = torch.tensor([30, 9], dtype=torch.int32)
    bound = kernel(key, device())
    want = bound.run(DenseDecode(q, cache, table, lens, 0.05))
    found = bound.run(DenseDecode(q, placed(cache, layout, place), table, lens, 0.05))
    assert all(map(torch.equal, want, found)), (layout, place)


def far_apart(values: Tensor, dim: int) -> Tensor:
    """``values`` with a stride of FAR elements in ``dim``. The memory between is never touched."""
    strides = list(values.stride())
    strides[dim] = FAR
    pool = torch.empty(values.numel() + FAR * (values.shape[dim] - 1), dtype=values.dtype)
    return pool.as_strided(values.shape, strides).copy_(values)


@pytest.mark.parametrize("dim", some([0, 1, 2], 0, 2))
@pytest.mark.parametrize("op", ["dense", "sparse"])
def test_queries_and_outputs_past_32_bits(op: str, dim: int) -> None:
    g = torch.Generator().manual_seed(2)
    cache = pool("dense", 4, 16, g)
    q = torch.randn(2, 2, 2, 576, generator=g).bfloat16()
    out = far_apart(torch.zeros(2, 2, 2, 512, dtype=torch.bfloat16), dim)
    lse = far_apart(torch.zeros(2, 2, 2), dim)
    if op == "dense":
        bound = kernel(KernelKey(s_q=2, h_q=2, page_block_size=16), device(parts=3))
        table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
        rest = (cache, table, torch.tensor([30, 9], dtype=torch.int32), 0.05)
    else:
        key = KernelKey(op=SPARSE_DECODE, s_q=2, h_q=2, page_block_size=16, topk=20)
        bound = kernel(key, device())
        slots = torch.randint(0, 64, (2, 2, 20), generator=g, dtype=torch.int32)
        rest = (cache, slots, 0.05)
    call = DenseDecode if op == "dense" else SparseDecode
    want = bound.run(call(q, *rest))
    found = bound.run(call(far_apart(q, dim), *rest, out, lse))
    assert all(map(torch.equal, want, found)), (op, dim)


@pytest.mark.parametrize("dim", [0, 1])
def test_caches_past_32_bits(dim: int) -> None:
    g = torch.Generator().manual_seed(3)
    cache = pool("dense", 2, 2, g)
    q = torch.randn(1, 1, 2, 576, generator=g).bfloat16()
    key = KernelKey(h_q=2, page_block_size=2, kv_strides="token_strided")
    table, lens = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    bound = kernel(key, device())
    want = bound.run(DenseDecode(q, cache, table, lens, 0.05))
    found = bound.run(DenseDecode(q, far_apart(cache, dim), table, lens, 0.05))
    assert all(map(torch.equal, want, found)), dim
    slots = torch.tensor([[[3, 0, 2, 1]]], dtype=torch.int32)
    sparse = key.with_(op=SPARSE_DECODE, topk=4)
    bound = kernel(sparse, device())
    want = bound.run(SparseDecode(q, cache, slots, 0.05))
    found = bound.run(SparseDecode(q, far_apart(cache, dim), slots, 0.05))
    assert all(map(torch.equal, want, found)), dim


def test_lazily_negated_views() -> None:
    g = torch.Generator().manual_seed(4)
    cache, q = pool("dense", 4, 16, g), torch.randn(1, 1, 2, 576, generator=g).bfloat16()
    minus = torch._neg_view
    table, lens = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    dense = kernel(KernelKey(h_q=2, page_block_size=16), device())
    want = dense.run(DenseDecode(q, cache, table, lens, 0.05))
    found = dense.run(DenseDecode(minus(-q), minus(-cache), table, lens, 0.05))
    assert all(map(torch.equal, want, found))
    slots = torch.randint(0, 64, (1, 1, 20), generator=g, dtype=torch.int32)
    sink = torch.randn(2, generator=g)
    sparse = kernel(
        KernelKey(
            op=SPARSE_DECODE, h_q=2, page_block_size=16, topk=20, attn_sink=True, extra_topk=20,
            extra_page_block_size=16,
        ),
        device(),
    )  # fmt: skip
    out = minus(torch.zeros(1, 1, 2, 512, dtype=torch.bfloat16))
    want = sparse.run(SparseDecode(q, cache, slots, 0.05, None, None, None, sink, cache, slots))
    found = sparse.run(
        SparseDecode(
            minus(-q), minus(-cache), slots, 0.05, out, None, None, minus(-sink), minus(-cache),
            slots,
        )
    )  # fmt: skip
    assert all(map(torch.equal, want, found))
    prefill = kernel(
        KernelKey(op=SPARSE_PREFILL, h_q=2, page_block_size=1, topk=20, attn_sink=True), device()
    )
    kv, rest = cache.reshape(64, 1, 576), (slots[0], 0.05, None, None, None, None)
    want = prefill.run(SparsePrefill(q[0], kv, *rest, sink))
    found = prefill.run(SparsePrefill(minus(-q[0]), minus(-kv), *rest, minus(-sink)))
    assert all(map(torch.equal, want, found))

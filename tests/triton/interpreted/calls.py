"""Small calls of the bound kernels on CPU tensors, each checked against the float64 oracle."""

from __future__ import annotations

import dataclasses
import math

import oracle
import torch
from torch import Tensor

from flashmla_hub import kv_format
from flashmla_hub.backends.triton.bound import kernel_for
from flashmla_hub.backends.triton.config import Config, config_for
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import SPARSE_DECODE, SPARSE_PREFILL, KernelKey

NOWHERE = 2_147_480_000  # a page id that must never be used as an address
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def device(arch: str = "sm_90", parts: int = 4) -> DeviceInfo:
    vendor = "amd" if arch.startswith("gfx") else "nvidia"
    return DeviceInfo(vendor, arch, "cpu", multiprocessors=parts, simulated=True)


def kernel(key: KernelKey, on: DeviceInfo, config: Config | None = None):
    config = config or config_for(key, on)
    plain = dataclasses.replace(config, pdl=False, gluon=False, prefetch=False)
    return kernel_for(key, on, plain)


def paged(lens: list[int], page: int, h_kv: int, d: int, dtype: torch.dtype, seed: int):
    """A shuffled pool with NaN in every unused slot, and a table with garbage in dead entries."""
    g = torch.Generator().manual_seed(seed)
    used = [math.ceil(max(n, 0) / page) for n in lens]
    width = max(1, max(used)) + 1
    pages = sum(used) + 2
    cache = torch.randn(pages, page, h_kv, d, generator=g).to(dtype)
    table = torch.full((len(lens), width), NOWHERE, dtype=torch.int32)
    order = torch.randperm(pages, generator=g).tolist()
    live = torch.zeros(pages, page, dtype=torch.bool)
    for b, n in enumerate(lens):
        for j in range(used[b]):
            table[b, j] = order.pop()
            live[table[b, j], : n - j * page] = True
    cache[~live] = math.nan
    return cache, table


def dense(
    lens: list[int], *, s_q: int = 1, h_q: int = 16, h_kv: int = 1, page: int = 64,
    dtype: str = "bfloat16", dims: tuple[int, int] = (576, 512), causal: bool = False,
    arch: str = "sm_90", parts: int = 4, invariant: bool = False, config: Config | None = None,
    scale: float | None = None, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    d, d_v = dims
    causal = causal and s_q > 1
    key = KernelKey(
        s_q=s_q, h_q=h_q, h_kv=h_kv, d_qk=d, d_v=d_v, page_block_size=page, dtype=dtype,
        causal=causal, batch_invariant=invariant,
    )  # fmt: skip
    cache, table = paged(lens, page, h_kv, d, DTYPES[dtype], seed)
    g = torch.Generator().manual_seed(seed + 1)
    q = torch.randn(len(lens), s_q, h_q, d, generator=g).to(DTYPES[dtype])
    seqlens = torch.tensor(lens, dtype=torch.int32)
    scale = d**-0.5 if scale is None else scale
    out = torch.full((len(lens), s_q, h_q, d_v), math.nan, dtype=DTYPES[dtype])
    lse = torch.full((len(lens), h_q, s_q), math.nan)
    call = DenseDecode(q, cache, table, seqlens, scale, out, lse)
    kernel(key, device(arch, parts), config).run(call)
    want = oracle.dense_decode(
        q, cache, table, seqlens, d_v=d_v, softmax_scale=scale, causal=causal
    )
    oracle.check(out, lse, want, f"{lens} {key.summary()} {arch} parts={parts} seed={seed}")
    return out, lse


def lists(shape: tuple[int, ...], tokens: int, g: torch.Generator) -> Tensor:
    """Slots with duplicates, and among them entries that are negative or past the cache."""
    slots = torch.randint(0, tokens, shape, generator=g, dtype=torch.int32)
    bad = torch.rand(shape, generator=g) < 0.2
    wrong = torch.tensor([-1, -7, tokens, NOWHERE], dtype=torch.int32)
    pick = torch.randint(0, 4, shape, generator=g)
    return torch.where(bad, wrong[pick], slots)


def fp8_pool(pages: int, page: int, layout: str, g: torch.Generator) -> Tensor:
    k = torch.randn(pages, page, 1, kv_format.get(layout).d_qk, generator=g)
    return kv_format.quantize(k.bfloat16(), layout)


def sparse_decode(
    *, batch: int = 2, s_q: int = 1, h_q: int = 16, topk: int = 40, layout: str = "dense",
    page: int = 64, dims: tuple[int, int] = (576, 512), dtype: str = "bfloat16",
    counts: list[int] | None = None, sink: bool = False, extra: int = 0, extra_page: int = 16,
    extra_counts: list[int] | None = None, arch: str = "sm_90", parts: int = 8,
    invariant: bool = False, config: Config | None = None, scale: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first, second = kv_format.PAIRS.get(layout, (layout, layout))
    d, d_v = dims if layout == "dense" else (kv_format.get(first).d_qk, 512)
    scale = d**-0.5 if scale is None else scale
    g = torch.Generator().manual_seed(seed)
    key = KernelKey(
        op=SPARSE_DECODE, s_q=s_q, h_q=h_q, d_qk=d, d_v=d_v, page_block_size=page, dtype=dtype,
        kv_format=layout, topk=topk, topk_length=counts is not None, attn_sink=sink,
        extra_topk=extra, extra_page_block_size=extra_page if extra else 0,
        extra_topk_length=extra_counts is not None, batch_invariant=invariant,
    )  # fmt: skip

    def pool(pages: int, size: int, layout: str) -> Tensor:
        if layout != "dense":
            return fp8_pool(pages, size, layout, g)
        return torch.randn(pages, size, 1, d, generator=g).to(DTYPES[dtype])

    cache = pool(3, page, first)
    q = torch.randn(batch, s_q, h_q, d, generator=g).to(DTYPES[dtype])
    indices = lists((batch, s_q, topk), 3 * page, g)
    options = {
        "topk_length": None if counts is None else torch.tensor(counts, dtype=torch.int32),
        "attn_sink": torch.randn(h_q, generator=g) if sink else None,
        "extra_k_cache": pool(4, extra_page, second) if extra else None,
    }
    if sink:
        options["attn_sink"][:2] = torch.tensor([math.inf, -math.inf])
    more = lists((batch, s_q, extra), 4 * extra_page, g) if extra else None
    limit = None if extra_counts is None else torch.tensor(extra_counts, dtype=torch.int32)
    out = torch.full((batch, s_q, h_q, d_v), math.nan, dtype=DTYPES[dtype])
    lse = torch.full((batch, h_q, s_q), math.nan)
    call = SparseDecode(
        q, cache, indices, d**-0.5, out, lse, extra_indices=more, extra_topk_length=limit, **options
    )
    kernel(key, device(arch, parts), config).run(call)
    want = oracle.sparse_decode(
        q, cache, indices, d_v=d_v, softmax_scale=d**-0.5, kv_format=first, **options,
        extra_indices=more, extra_topk_length=limit, extra_kv_format=second,
    )  # fmt: skip
    oracle.check(out, lse, want, f"{key.summary()} {arch} parts={parts} seed={seed}")
    return out, lse


def dense_fp8(
    lens: list[int], layout: str, *, s_q: int = 1, h_q: int = 8, page: int = 64,
    causal: bool = False, arch: str = "sm_90", parts: int = 4, seed: int = 0,
    descale: float = 1.0, d: int = 0,
) -> None:  # fmt: skip
    d = d or kv_format.get(layout).d_qk
    factor = torch.tensor([descale]) if layout == "fp8" and descale != 1 else None
    key = KernelKey(
        s_q=s_q, h_q=h_q, d_qk=d, d_v=512, page_block_size=page, kv_format=layout, causal=causal
    )
    g = torch.Generator().manual_seed(seed)
    k, table = paged(lens, page, 1, d, torch.bfloat16, seed)
    cache = kv_format.quantize(k.nan_to_num(0.0), layout, factor)
    for part in kv_format.get(layout, d).views(cache):
        part[k.isnan().any(-1).squeeze(-1)] = 255  # NaN in e4m3, in scales and in the rope part
    q = torch.randn(len(lens), s_q, h_q, d, generator=g).bfloat16()
    seqlens = torch.tensor(lens, dtype=torch.int32)
    call = DenseDecode(q, cache, table, seqlens, d**-0.5, descale_k=factor)
    out, lse = kernel(key, device(arch, parts)).run(call)
    want = oracle.dense_decode(
        q, cache, table, seqlens, d_v=512, softmax_scale=d**-0.5, causal=causal, kv_format=layout,
        descale=descale,
    )  # fmt: skip
    oracle.check(out, lse, want, f"{lens} {key.summary()} {arch} seed={seed}")


def sparse_prefill(
    *, queries: int = 3, tokens: int = 100, h_q: int = 16, h_kv: int = 1, topk: int = 40,
    dims: tuple[int, int] = (576, 512), dtype: str = "bfloat16", counts: list[int] | None = None,
    sink: bool = False, parts: int = 2, arch: str = "sm_90", seed: int = 0,
) -> None:  # fmt: skip
    d, d_v = dims
    g = torch.Generator().manual_seed(seed)
    key = KernelKey(
        op=SPARSE_PREFILL, h_q=h_q, h_kv=h_kv, d_qk=d, d_v=d_v, page_block_size=1, dtype=dtype,
        topk=topk, topk_length=counts is not None, attn_sink=sink,
    )  # fmt: skip
    q = torch.randn(queries, h_q, d, generator=g).to(DTYPES[dtype])
    kv = torch.randn(tokens, h_kv, d, generator=g).to(DTYPES[dtype])
    indices = lists((queries, h_kv, topk), tokens, g)
    length = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    weight = torch.randn(h_q, generator=g) if sink else None
    call = SparsePrefill(q, kv, indices, d**-0.5, topk_length=length, attn_sink=weight)
    out, top, lse = kernel(key, device(arch, parts)).run(call)
    want = oracle.sparse_prefill(
        q, kv, indices, d_v=d_v, softmax_scale=d**-0.5, topk_length=length, attn_sink=weight
    )
    name = f"{key.summary()} {arch} parts={parts} seed={seed}"
    oracle.check(out.unsqueeze(1), lse.unsqueeze(2), want, name)
    torch.testing.assert_close(
        top.unsqueeze(2).double(), want.max_logits, rtol=2e-4, atol=1e-6, msg=name
    )

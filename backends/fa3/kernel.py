"""Calls of FlashAttention-3: q and K without their latent part, V and qv the latent part."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import deliver, safe_rows
from flashmla_hub.call import DenseDecode
from flashmla_hub.request import KernelKey

if TYPE_CHECKING:
    from flashmla_hub.bench.shapes import Case


class PagedDecode(BoundKernel):
    """Reads the cache in place through views of its two parts."""

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._call = module.flash_attn_with_kvcache
        self._key = key

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, cache_seqlens, scale, out, lse = call[:7]
        d_v = self._key.d_v
        table, lens = safe_rows(block_table, cache_seqlens, self._key.page_block_size)
        keys, paged = self._keys(k_cache, table, cache_seqlens)
        got = self._call(
            q[..., d_v:].contiguous(), keys[..., d_v:], keys[..., :d_v],
            qv=q[..., :d_v].contiguous(), cache_seqlens=lens, softmax_scale=scale,
            causal=self._key.causal, return_softmax_lse=True, **paged,
        )  # fmt: skip
        return deliver(got[0], out), deliver(got[1], lse)

    def _keys(
        self, k_cache: Tensor, table: Tensor, lens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return k_cache, {"page_table": table}


class GatheredDecode(PagedDecode):
    """Copies each row's pages to one contiguous stretch, zeros past its end."""

    def _keys(
        self, k_cache: Tensor, table: Tensor, lens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, width = table.shape
        keys = k_cache[table.long()].view(batch, width * k_cache.shape[1], *k_cache.shape[2:])
        position = torch.arange(keys.shape[1], dtype=torch.int32, device=keys.device)
        past = position >= lens.unsqueeze(1)
        return keys.masked_fill_(past[:, :, None, None], 0), {}


def peer_call(module: ModuleType, case: Case, paged: bool) -> Callable[[], Tensor]:
    """One decode of ``case`` as FlashAttention-3's own users call it."""
    d_v = 512
    keys, extra = case.k_cache, {"page_table": case.block_table}
    if not paged:
        batch, width = case.block_table.shape
        keys = keys[case.block_table.long()].view(batch, width * keys.shape[1], *keys.shape[2:])
        extra = {}
    return functools.partial(
        module.flash_attn_with_kvcache,
        case.q[..., d_v:].contiguous(), keys[..., d_v:], keys[..., :d_v],
        qv=case.q[..., :d_v].contiguous(), cache_seqlens=case.cache_seqlens,
        softmax_scale=case.softmax_scale, causal=case.shape.causal, **extra,
    )  # fmt: skip

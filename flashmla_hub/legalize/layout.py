"""Rewrites of memory layout: split pages, contiguous copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize.wrapper import Wrapper
from flashmla_hub.request import DENSE_DECODE, PACKED, KernelKey


def narrow_pages(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    """A page of k*P tokens is k pages of P. Needs packed pages: the view has one page stride."""
    splittable = key.op == DENSE_DECODE and key.kv_format == "dense" and key.kv_strides == PACKED
    if not splittable or key.page_block_size in takes.page_block_size:
        return None
    page = takes.page_block_size.divisor_of(key.page_block_size)
    return None if page is None else key.with_(page_block_size=page)


def cost_pages(wide: KernelKey, narrow: KernelKey) -> str:
    k = wide.page_block_size // narrow.page_block_size
    return f"each page of {wide.page_block_size} viewed as {k} of {narrow.page_block_size}"


class SplitPages(Wrapper):
    """The cache is a view; only the block table is rewritten.

    Entries past a row's pages stay meaningless whatever they become (C1.3): the product of a
    garbage entry may wrap, which int32 arithmetic in torch defines.
    """

    def run(self, q: Tensor, k_cache: Tensor, table: Tensor, *args: Any) -> Any:
        *rest, plan = args
        return self.inner.run(q, self._view(k_cache), self._split(table), *rest, plan)

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        table = None if block_table is None else self._split(block_table)
        return self.inner.plan(table, cache_seqlens)

    def _view(self, k_cache: Tensor) -> Tensor:
        return k_cache.view(-1, self.narrow.page_block_size, *k_cache.shape[2:])

    def _split(self, table: Tensor) -> Tensor:
        k = self.wide.page_block_size // self.narrow.page_block_size
        offsets = torch.arange(k, dtype=torch.int32, device=table.device)
        return (table.unsqueeze(-1) * k + offsets).flatten(1)


def narrow_q(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    if key.q_strides in takes.q_strides or PACKED not in takes.q_strides:
        return None
    return key.with_(q_strides=PACKED)


def cost_q(wide: KernelKey, narrow: KernelKey) -> str:
    return "q copied to contiguous memory"


class ContiguousQ(Wrapper):
    """A packed copy of q, each call."""

    def run(self, q: Tensor, *args: Any) -> Any:
        return self.inner.run(q.contiguous(), *args)


def narrow_kv(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    if key.kv_strides in takes.kv_strides or PACKED not in takes.kv_strides:
        return None
    return key.with_(kv_strides=PACKED)


def cost_kv(wide: KernelKey, narrow: KernelKey) -> str:
    return "the WHOLE cache copied to contiguous memory on every call; use packed pages instead"


class ContiguousKV(Wrapper):
    """A packed copy of the cache, each call: the last resort of ports that demand it."""

    def run(self, q: Tensor, k_cache: Tensor, *args: Any) -> Any:
        return self.inner.run(q, k_cache.contiguous(), *args)

"""Rewrites of memory layout: split pages, contiguous copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.call import DenseDecode
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize.wrapper import Wrapper, deliver
from flashmla_hub.request import DENSE_DECODE, PACKED, SPARSE_PREFILL, KernelKey
from flashmla_hub.strides import BEST_ALIGNMENT


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

    def run(self, call: DenseDecode) -> Any:
        table = self._split(call.block_table)
        return self.inner.run(call._replace(k_cache=self._view(call.k_cache), block_table=table))

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
    fits = key.q_strides in takes.q_strides and key.q_alignment >= takes.needs("q_alignment")
    if fits or PACKED not in takes.q_strides:
        return None
    return key.with_(q_strides=PACKED, q_alignment=BEST_ALIGNMENT)


def cost_q(wide: KernelKey, narrow: KernelKey) -> str:
    return "q copied to contiguous memory"


class ContiguousQ(Wrapper):
    """A packed copy of q, each call: memory of torch's allocator is aligned."""

    def run(self, call: Any) -> Any:
        return self.inner.run(call._replace(q=call.q.clone(memory_format=torch.contiguous_format)))


def narrow_out(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    fits = key.out_alignment >= takes.needs("out_alignment")
    if fits and key.out_strides in takes.out_strides:
        return None
    return key.with_(out_strides=PACKED, out_alignment=BEST_ALIGNMENT)


def cost_out(wide: KernelKey, narrow: KernelKey) -> str:
    return "out computed in memory of its own and copied"


class OwnOut(Wrapper):
    """The kernel's own out, copied into the caller's, which it cannot write to."""

    def run(self, call: Any) -> Any:
        result, *rest = self.inner.run(call._replace(out=None))
        return (deliver(result, call.out), *rest)


def narrow_kv(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    if key.kv_strides in takes.kv_strides or PACKED not in takes.kv_strides:
        return None
    return key.with_(kv_strides=PACKED)


def cost_kv(wide: KernelKey, narrow: KernelKey) -> str:
    return "the WHOLE cache copied to contiguous memory on every call; use packed pages instead"


class ContiguousKV(Wrapper):
    """A packed copy of the cache, each call: the last resort of ports that demand it."""

    def run(self, call: Any) -> Any:
        cache = "kv" if self.wide.op == SPARSE_PREFILL else "k_cache"
        return self.inner.run(call._replace(**{cache: getattr(call, cache).contiguous()}))

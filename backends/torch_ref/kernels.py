"""The bound kernels of the three ops. Immutable; arguments as flashmla_hub.backend.BoundKernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends.torch_ref.attention import attend, compute_dtype
from flashmla_hub.backends.torch_ref.sources import PagedSource, Pool, SlotSource
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey


@dataclass(frozen=True)
class DenseDecode(BoundKernel):
    key: KernelKey

    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        plan: None,
    ) -> tuple[Tensor, Tensor]:
        key = self.key
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            pool = Pool(k_cache, key.kv_format, compute)
            source = PagedSource(pool, block_table, cache_seqlens, key.s_q, key.causal)
            new_out, new_lse, _ = attend(q, key.h_kv, key.d_v, [source], softmax_scale, compute)
            return _store(new_out, out), _store(new_lse.transpose(1, 2), lse)


@dataclass(frozen=True)
class SparseDecode(BoundKernel):
    key: KernelKey

    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        indices: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        topk_length: Tensor | None,
        attn_sink: Tensor | None,
        extra_k_cache: Tensor | None,
        extra_indices: Tensor | None,
        extra_topk_length: Tensor | None,
        plan: None,
    ) -> tuple[Tensor, Tensor]:
        key, batch = self.key, q.shape[0]
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            caches = [(k_cache, indices, topk_length)]
            if extra_k_cache is not None and extra_indices is not None:
                caches.append((extra_k_cache, extra_indices, extra_topk_length))
            sources = []
            for cache, slots, length in caches:  # each query is a row with its own list
                per_query = None if length is None else length.repeat_interleave(key.s_q)
                pool = Pool(cache, key.kv_format, compute)
                sources.append(SlotSource(pool, slots.flatten(0, 1).unsqueeze(1), per_query))
            queries = q.flatten(0, 1).unsqueeze(1)
            new_out, new_lse, _ = attend(
                queries, key.h_kv, key.d_v, sources, softmax_scale, compute, attn_sink
            )
            new_lse = new_lse.view(batch, key.s_q, key.h_q).transpose(1, 2)
            return _store(new_out.view(*q.shape[:3], key.d_v), out), _store(new_lse, lse)


@dataclass(frozen=True)
class SparsePrefill(BoundKernel):
    key: KernelKey

    def run(
        self,
        q: Tensor,
        kv: Tensor,
        indices: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        max_logits: Tensor | None,
        topk_length: Tensor | None,
        attn_sink: Tensor | None,
        plan: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        key = self.key
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            pool = Pool(kv.unsqueeze(1), key.kv_format, compute)  # pages of one token
            source = SlotSource(pool, indices, topk_length)
            new_out, new_lse, new_max = attend(
                q.unsqueeze(1), key.h_kv, key.d_v, [source], softmax_scale, compute, attn_sink
            )
            results = ((new_out, out), (new_max, max_logits), (new_lse, lse))
            stored = [_store(new.squeeze(1), given) for new, given in results]
            return stored[0], stored[1], stored[2]


KERNELS: dict[str, Callable[[KernelKey], BoundKernel]] = {
    DENSE_DECODE: DenseDecode,
    SPARSE_DECODE: SparseDecode,
    SPARSE_PREFILL: SparsePrefill,
}


@contextmanager
def _as_written(device: torch.device) -> Iterator[None]:
    """Compute as the code says: autocast would round its float32 products to half precision."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    with torch.no_grad():
        if on:
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


def _store(result: Tensor, given: Tensor | None) -> Tensor:
    return result.contiguous() if given is None else given.copy_(result)

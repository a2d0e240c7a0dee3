"""The bound kernels of the three ops. Immutable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends.torch_ref.attention import attend, compute_dtype
from flashmla_hub.backends.torch_ref.sources import PagedSource, Pool, SlotSource, layouts_of
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey


@dataclass(frozen=True)
class DenseKernel(BoundKernel):
    key: KernelKey

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        key, q = self.key, call.q
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            pool = Pool(call.k_cache, key.kv_format, compute, call.descale_k)
            table, lens = call.block_table, call.cache_seqlens
            source = PagedSource(pool, table, lens, key.s_q, key.causal)
            out, lse, _ = attend(q, key.h_kv, key.d_v, [source], call.softmax_scale, compute)
            return _store(out, call.out), _store(lse.transpose(1, 2), call.lse)


@dataclass(frozen=True)
class SparseKernel(BoundKernel):
    key: KernelKey

    def run(self, call: SparseDecode) -> tuple[Tensor, Tensor]:
        key, q, batch = self.key, call.q, call.q.shape[0]
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            first, second = layouts_of(key.kv_format)
            caches = [(call.k_cache, first, call.indices, call.topk_length)]
            if call.extra_k_cache is not None and call.extra_indices is not None:
                caches.append(
                    (call.extra_k_cache, second, call.extra_indices, call.extra_topk_length)
                )
            sources = []
            for cache, layout, slots, length in caches:  # each query is a row with its own list
                per_query = None if length is None else length.repeat_interleave(key.s_q)
                pool = Pool(cache, layout, compute, call.descale_k)
                sources.append(SlotSource(pool, slots.flatten(0, 1).unsqueeze(1), per_query))
            queries = q.flatten(0, 1).unsqueeze(1)
            out, lse, _ = attend(
                queries, key.h_kv, key.d_v, sources, call.softmax_scale, compute, call.attn_sink
            )
            lse = lse.view(batch, key.s_q, key.h_q).transpose(1, 2)
            return _store(out.view(*q.shape[:3], key.d_v), call.out), _store(lse, call.lse)


@dataclass(frozen=True)
class PrefillKernel(BoundKernel):
    key: KernelKey

    def run(self, call: SparsePrefill) -> tuple[Tensor, Tensor, Tensor]:
        key, q = self.key, call.q
        with _as_written(q.device):
            compute = compute_dtype(q.dtype, q.device)
            pool = Pool(call.kv.unsqueeze(1), key.kv_format, compute)  # pages of one token
            source = SlotSource(pool, call.indices, call.topk_length)
            out, lse, top = attend(
                q.unsqueeze(1), key.h_kv, key.d_v, [source], call.softmax_scale, compute,
                call.attn_sink,
            )  # fmt: skip
            results = ((out, call.out), (top, call.max_logits), (lse, call.lse))
            stored = [_store(new.squeeze(1), given) for new, given in results]
            return stored[0], stored[1], stored[2]


KERNELS: dict[str, Callable[[KernelKey], BoundKernel]] = {
    DENSE_DECODE: DenseKernel,
    SPARSE_DECODE: SparseKernel,
    SPARSE_PREFILL: PrefillKernel,
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

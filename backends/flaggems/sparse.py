"""Sparse decode of FlagGems. It reads every entry up to topk_length as an address, so the valid
ones are moved to the front; the order of keys does not matter to a softmax."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import deliver, valid_entries
from flashmla_hub.call import SparseDecode
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

# page * stride is a product of 32-bit numbers in the kernel
MAX_CACHE_BYTES = 1 << 31


class SparseKernel(BoundKernel):
    """``flash_mla_with_kvcache`` of :mod:`flag_gems.fused`; its metadata arguments are unused."""

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._call = module.flash_mla_with_kvcache
        self._key = key

    def run(self, call: SparseDecode) -> tuple[Tensor, Tensor]:
        q, cache, indices, scale, out, lse, length, sink = call[:8]
        extra, extra_indices = call.extra_k_cache, call.extra_indices
        entries, count = self._front(indices, cache, length)
        more: dict[str, Any] = {}
        if extra is not None and extra_indices is not None:
            extra_entries, extra_count = self._front(extra_indices, extra, call.extra_topk_length)
            more = {
                "extra_k_cache": extra.view(torch.uint8),
                "extra_indices_in_kvcache": extra_entries,
                "extra_topk_length": extra_count,
            }
        got = self._call(
            q, cache.view(torch.uint8), None, None, self._key.d_v, None,
            softmax_scale=scale, is_fp8_kvcache=True, indices=entries, attn_sink=sink,
            topk_length=count, **more,
        )  # fmt: skip
        return deliver(got[0], out), deliver(got[1], lse)

    def _front(
        self, indices: Tensor, cache: Tensor, length: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(entries with the valid ones first, how many are)."""
        if cache.numel() > MAX_CACHE_BYTES:
            raise NotSupportedError(
                "flaggems_sparse", "cache bytes", cache.numel(), f"<= {MAX_CACHE_BYTES}"
            )
        valid = valid_entries(indices, cache.shape[0] * cache.shape[1], length)
        order = torch.sort(valid, dim=-1, descending=True, stable=True).indices
        entries = indices.masked_fill(~valid, 0).gather(-1, order)
        return entries.contiguous(), valid.sum(-1, dtype=torch.int32).flatten()

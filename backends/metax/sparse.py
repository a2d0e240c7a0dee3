"""Sparse attention of mcFlashMLA. An entry is invalid for it only as -1, so others become that."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import deliver, valid_entries
from flashmla_hub.call import SparseDecode, SparsePrefill
from flashmla_hub.request import SPARSE_DECODE, SPARSE_PREFILL, KernelKey


def _only_valid(indices: Tensor, slots: int, length: Tensor | None) -> Tensor:
    return indices.masked_fill(~valid_entries(indices, slots, length), -1)


class SparseKernel(BoundKernel):
    """``flash_mla_with_kvcache(indices=...)``. It still checks block_table and cache_seqlens,
    which it does not use: they name page 0 for as many tokens as there are entries."""

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._module, self._key = module, key

    def run(self, call: SparseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, indices, scale, out, lse, topk_length = call[:7]
        key = self._key
        entries = _only_valid(indices, k_cache.shape[0] * k_cache.shape[1], topk_length)
        lens = torch.full((q.shape[0],), key.topk, dtype=torch.int32, device=q.device)
        width = -(-key.topk // key.page_block_size)
        table = torch.zeros((q.shape[0], width), dtype=torch.int32, device=q.device)
        meta, splits = self._module.get_mla_metadata(
            lens, key.s_q * key.h_q // key.h_kv, key.h_kv, key.h_q, False, key.topk
        )
        got = self._module.flash_mla_with_kvcache(
            q, k_cache, table, lens, key.d_v, meta, splits,
            softmax_scale=scale, causal=False, indices=entries,
        )  # fmt: skip
        return deliver(got[0], out), deliver(got[1], lse)


class PrefillKernel(BoundKernel):
    """``flash_mla_sparse_fwd``: max_logits are in base 2 too; the lse's rewrite is declared."""

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._module, self._key = module, key

    def run(self, call: SparsePrefill) -> tuple[Tensor, Tensor, Tensor]:
        q, kv, indices, scale, out, lse, max_logits, topk_length = call[:8]
        entries = _only_valid(indices, kv.shape[0], topk_length)
        got = self._module.flash_mla_sparse_fwd(q, kv, entries, scale, self._key.d_v)
        natural = got[1] * math.log(2.0)
        return deliver(got[0], out), deliver(natural, max_logits), deliver(got[2], lse)


KERNELS = {SPARSE_DECODE: SparseKernel, SPARSE_PREFILL: PrefillKernel}

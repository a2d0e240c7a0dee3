"""The sparse ops, and dense decode over FP8 caches, as the hub calls them."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmla_hub.backends.triton.host import on_device, resolved, vectors
from flashmla_hub.backends.triton.sparse_bound import MAX_SLOTS, SparseKernel
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill


class SparseDecodeKernel(SparseKernel):
    def run(self, call: SparseDecode) -> tuple[Tensor, Tensor]:
        extra = (call.extra_k_cache, call.extra_indices, call.extra_topk_length)
        return self.decode(
            call.q, call.k_cache, call.indices.unsqueeze(2), call.topk_length, call.attn_sink,
            extra, call.out, call.lse, call.softmax_scale, call.indices.shape[-1], call.descale_k,
        )  # fmt: skip


class PagedFp8Kernel(SparseKernel):
    """Dense decode over an FP8 cache: each query token reads its request's tokens by itself."""

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, table = call.q, call.block_table
        width = table.shape[1]
        capacity = min(width * self.key.page_block_size, MAX_SLOTS)
        lists = table[:, None, None, :].expand(q.shape[0], self.key.s_q, 1, width)
        return self.decode(
            q, call.k_cache, lists, call.cache_seqlens, None, (None, None, None), call.out,
            call.lse, call.softmax_scale, capacity, call.descale_k,
        )  # fmt: skip


class SparsePrefillKernel(SparseKernel):
    def run(self, call: SparsePrefill) -> tuple[Tensor, Tensor, Tensor]:
        q, kv, indices, softmax_scale, out, lse, max_logits, topk_length, attn_sink, _ = call
        key = self.key
        queries = q.shape[0]
        q, kv = resolved(q), resolved(kv)
        attn_sink = None if attn_sink is None else resolved(attn_sink)
        if not vectors(q):
            q = q.contiguous()
        target = out
        if target is None or not vectors(target):
            shape = (queries, key.h_q, key.d_v)
            target = torch.empty(shape, dtype=self.dtype, device=q.device)
        both = torch.empty((2, queries, key.h_q), dtype=torch.float32, device=q.device)
        with on_device(q):
            self.launch(
                q.unsqueeze(1), kv.unsqueeze(1), indices.unsqueeze(1), topk_length, attn_sink,
                None, None, None, target.unsqueeze(1), both[0].unsqueeze(2), both[1].unsqueeze(2),
                softmax_scale, indices.shape[-1],
            )  # fmt: skip
        if out is not None and out is not target:
            out.copy_(target)
        return (
            target if out is None else out,
            both[1] if max_logits is None else max_logits.copy_(both[1]),
            both[0] if lse is None else lse.copy_(both[0]),
        )

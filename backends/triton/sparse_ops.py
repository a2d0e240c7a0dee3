"""The sparse ops, and dense decode over FP8 caches, as the hub calls them."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmla_hub.backends.triton.host import on_device, resolved, vectors
from flashmla_hub.backends.triton.sparse_bound import MAX_SLOTS, SparseKernel


class SparseDecodeKernel(SparseKernel):
    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        indices: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        topk_length: Tensor | None = None,
        attn_sink: Tensor | None = None,
        extra_k_cache: Tensor | None = None,
        extra_indices: Tensor | None = None,
        extra_topk_length: Tensor | None = None,
        plan: object = None,
    ) -> tuple[Tensor, Tensor]:
        extra = (extra_k_cache, extra_indices, extra_topk_length)
        return self.decode(
            q, k_cache, indices.unsqueeze(2), topk_length, attn_sink, extra, out, lse,
            softmax_scale, indices.shape[-1],
        )  # fmt: skip


class PagedFp8Kernel(SparseKernel):
    """Dense decode over an FP8 cache: each query token reads its request's tokens by itself."""

    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        plan: object = None,
    ) -> tuple[Tensor, Tensor]:
        width = block_table.shape[1]
        capacity = min(width * self.key.page_block_size, MAX_SLOTS)
        lists = block_table[:, None, None, :].expand(q.shape[0], self.key.s_q, 1, width)
        return self.decode(
            q, k_cache, lists, cache_seqlens, None, (None, None, None), out, lse, softmax_scale,
            capacity,
        )  # fmt: skip


class SparsePrefillKernel(SparseKernel):
    def run(
        self,
        q: Tensor,
        kv: Tensor,
        indices: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        max_logits: Tensor | None = None,
        topk_length: Tensor | None = None,
        attn_sink: Tensor | None = None,
        plan: object = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
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

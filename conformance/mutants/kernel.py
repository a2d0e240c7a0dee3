"""An honest kernel in plain torch, cut into small steps that a mutant overrides one of.

It shares no code with any backend of the hub. Rows are worked one by one, each for the pages it
uses and a few more of its table, so a row's bits do not depend on the rest of the batch. Lengths
are read on the host: the honest backends claim no graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import POSITIONAL
from flashmla_hub.conformance.mutants.formats import read_tokens
from flashmla_hub.request import (
    DENSE_DECODE,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    KernelKey,
)

ROOM = 3  # table entries worked on past the last whole page
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class HonestKernel(BoundKernel):
    """Split-KV attention by the book; ``split`` is the number of keys a split holds."""

    split = 256

    def __init__(self, key: KernelKey) -> None:
        self.key = key
        self.work = torch.float64 if key.dtype == "float32" else torch.float32

    # steps common to all ops

    def scale(self, softmax_scale: float) -> float:
        return softmax_scale

    def value(self, k: Tensor) -> Tensor:
        """V of K: (..., d_qk) -> (..., d_v)."""
        return k[..., : self.key.d_v]

    def heads(self, q: Tensor) -> Tensor:
        """(s, h_q, d) -> (h_kv, s * group, d): the queries of each kv head."""
        s, h, d = q.shape
        kv = self.key.h_kv
        return q.view(s, kv, h // kv, d).transpose(0, 1).reshape(kv, s * (h // kv), d)

    def unheads(self, x: Tensor, s: int) -> Tensor:
        """(h_kv, s * group, ...) -> (s, h_q, ...): the inverse of ``heads``."""
        kv, group = self.key.h_kv, self.key.h_q // self.key.h_kv
        return x.view(kv, s, group, *x.shape[2:]).transpose(0, 1).flatten(1, 2)

    def logits(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return torch.matmul(q, k.transpose(-1, -2)) * scale

    def weights(self, logits: Tensor, top: Tensor) -> Tensor:
        """exp(logits - top) with top (..., 1) finite; masked logits are -inf."""
        return torch.exp(logits - top)

    def partial(
        self, q: Tensor, k: Tensor, mask: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One split: unnormalised out, weight sum and maximum of the logits, (G, M, .)."""
        used = mask.any(dim=-2, keepdim=True).transpose(-1, -2)
        k = torch.where(used, k, 0)  # what no query sees may be NaN, and 0 * NaN is NaN
        logits = self.logits(q, k, scale).masked_fill(~mask, -math.inf)
        top = logits.amax(dim=-1, keepdim=True)
        weights = self.weights(logits, torch.where(top == -math.inf, 0, top))
        return torch.matmul(weights, self.value(k)), weights.sum(dim=-1, keepdim=True), top

    def combine(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        outs, sums, tops = (torch.stack(x) for x in zip(*parts, strict=True))
        top = tops.amax(dim=0)
        factor = torch.exp(tops - torch.where(top == -math.inf, 0, top))
        return (outs * factor).sum(dim=0), (sums * factor).sum(dim=0), top

    def finish(self, out: Tensor, total: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises, and gives rows without a visible key out 0 and lse +inf (C1.10)."""
        empty = total == 0
        out = torch.where(empty, 0, out / torch.where(empty, 1, total))
        lse = torch.where(empty, math.inf, top + torch.log(torch.where(empty, 1, total)))
        return out, self.lse(lse[..., 0])

    def lse(self, lse: Tensor) -> Tensor:
        return lse

    def splits(self, keys: int) -> Iterator[slice]:
        for start in range(0, keys, self.split):
            yield slice(start, min(start + self.split, keys))

    def attend(
        self, q: Tensor, k: Tensor, mask: Tensor, softmax_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (G, M, d), k (G, N, d), mask (G or 1, M or 1, N) -> out (G, M, d_v), lse and max."""
        scale = self.scale(softmax_scale)
        shape = (*q.shape[:-1], 1)
        none = q.new_zeros(*q.shape[:-1], self.key.d_v), q.new_zeros(shape)
        parts = [(*none, q.new_full(shape, -math.inf))]
        parts += [self.partial(q, k[:, s], mask[..., s], scale) for s in self.splits(k.shape[1])]
        out, total, top = self.combine(parts)
        return *self.finish(out, total, top), top[..., 0]

    def store(self, target: Tensor | None, value: Tensor, dtype: torch.dtype) -> Tensor:
        if target is None:
            return value.to(dtype)
        return target.copy_(value)

    def results(self, out: Tensor, lse: Tensor, to: tuple[Tensor | None, Tensor | None]) -> Any:
        """Hands back out (b, s_q, h_q, d_v) and lse (b, s_q, h_q), in place where asked."""
        return (
            self.store(to[0], out, DTYPES[self.key.dtype]),
            self.store(to[1], self.lse_layout(lse), torch.float32),
        )

    def lse_layout(self, lse: Tensor) -> Tensor:
        return lse.transpose(1, 2).contiguous()

    def run(self, call: Any, *rest: Any) -> Any:
        """A call as one value, or its leading fields by position, as older kernels take them."""
        fields = (call, *rest) if rest else call[: POSITIONAL[self.key.op]]
        table: dict[str, Callable[..., Any]] = {
            DENSE_DECODE: self.dense,
            SPARSE_DECODE: self.sparse,
            SPARSE_PREFILL: self.prefill,
        }
        return table[self.key.op](*fields)

    # dense decode

    def lengths(self, cache_seqlens: Tensor, capacity: int) -> Tensor:
        return cache_seqlens.clamp(0, capacity).long()

    def pages(self, table_row: Tensor, length: Tensor, num_blocks: int) -> Tensor:
        """The page ids of one row, those past its meaningful prefix replaced by 0."""
        page = self.key.page_block_size
        used = torch.arange(table_row.shape[0]) * page < length
        return torch.where(used, table_row.long(), 0)

    def visible(self, length: Tensor, keys: int) -> Tensor:
        """(s_q, keys) bool: which keys each query of the row sees."""
        j, t = torch.arange(keys), torch.arange(self.key.s_q)[:, None]
        last = length - self.key.s_q + t if self.key.causal else length - 1 + 0 * t
        return (j <= last) & (j < length)

    def gather(self, cache: Tensor, pages: Tensor) -> Tensor:
        """(pages * page_block_size, h_kv, d_qk)"""
        offset = torch.arange(self.key.page_block_size)
        k = read_tokens(cache, self.key.kv_format, *torch.broadcast_tensors(pages[:, None], offset))
        return k.flatten(0, 1)

    def row(
        self, b: int, q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """One row: out (s_q, h_q, d_v) and lse (s_q, h_q)."""
        if table.shape[1] == 0 or cache.shape[0] == 0:
            k = q.new_zeros((0, self.key.h_kv, self.key.d_qk), dtype=self.work)
        else:
            row = table[b, : max(int(lengths[b]), 0) // self.key.page_block_size + ROOM]
            k = self.gather(cache, self.pages(row, lengths[b], cache.shape[0])).to(self.work)
        mask = self.visible(lengths[b], k.shape[0])
        group = self.key.h_q // self.key.h_kv
        out, lse, _ = self.attend(
            self.heads(q[b].to(self.work)),
            k.transpose(0, 1),
            mask.repeat_interleave(group, dim=0)[None],
            scale,
        )
        return self.unheads(out, self.key.s_q), self.unheads(lse, self.key.s_q)

    def dense(
        self, q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
        softmax_scale: float, out: Tensor | None, lse: Tensor | None, plan: Any,
    ) -> Any:  # fmt: skip
        capacity = block_table.shape[1] * self.key.page_block_size
        lengths = self.lengths(cache_seqlens, capacity)
        rows = [
            self.row(b, q, k_cache, block_table, lengths, softmax_scale) for b in range(q.shape[0])
        ]
        outs, lses = (torch.stack(x) for x in zip(*rows, strict=True))
        return self.results(outs, lses, (out, lse))

    # sparse decode and prefill

    def valid(self, indices: Tensor, slots: int, limit: Tensor | None) -> Tensor:
        """Which entries of ``indices`` (..., topk) count; ``limit`` (...,) is topk_length."""
        ok = (indices >= 0) & (indices < slots)
        if limit is not None:
            ok &= torch.arange(indices.shape[-1]) < limit[..., None]
        return ok

    def pick(self, cache: Tensor, indices: Tensor, valid: Tensor, kv_format: str) -> Tensor:
        """K of the entries of ``indices`` (topk,): (topk, h_kv, d_qk)."""
        if cache.shape[0] * cache.shape[1] == 0:
            return torch.zeros((*indices.shape, self.key.h_kv, self.key.d_qk), dtype=self.work)
        slot = torch.where(valid, indices.long(), 0)
        page, offset = slot // cache.shape[1], slot % cache.shape[1]
        return read_tokens(cache, kv_format, page, offset).to(self.work)

    def sink(self, out: Tensor, lse: Tensor, attn_sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """out (..., h_q, d_v) *= sigmoid(lse - sink) where a key is visible (C4.2)."""
        if attn_sink is None:
            return out, lse
        gate = torch.sigmoid(lse - attn_sink.to(self.work))
        return torch.where((lse == math.inf)[..., None], 0, out * gate[..., None]), lse

    def sparse(
        self, q: Tensor, k_cache: Tensor, indices: Tensor, softmax_scale: float,
        out: Tensor | None, lse: Tensor | None, topk_length: Tensor | None,
        attn_sink: Tensor | None, extra_k_cache: Tensor | None, extra_indices: Tensor | None,
        extra_topk_length: Tensor | None, plan: Any,
    ) -> Any:  # fmt: skip
        caches = [(k_cache, indices, topk_length)]
        if extra_k_cache is not None and extra_indices is not None:
            caches.append((extra_k_cache, extra_indices, extra_topk_length))
        outs, lses = [], []
        for b in range(q.shape[0]):
            for t in range(self.key.s_q):
                ks, masks = [], []
                for cache, index, limit in caches:
                    slots = cache.shape[0] * cache.shape[1]
                    mask = self.valid(index[b, t], slots, None if limit is None else limit[b])
                    ks.append(self.pick(cache, index[b, t], mask, self.key.kv_format))
                    masks.append(mask)
                k, mask = torch.cat(ks).transpose(0, 1), torch.cat(masks)[None, None]
                o, row_lse, _ = self.attend(
                    self.heads(q[b, t : t + 1].to(self.work)), k, mask, softmax_scale
                )
                outs.append(self.unheads(o, 1)[0])
                lses.append(self.unheads(row_lse, 1)[0])
        shape = (q.shape[0], self.key.s_q, self.key.h_q)
        o, row_lse = self.sink(torch.stack(outs), torch.stack(lses), attn_sink)
        return self.results(o.view(*shape, -1), row_lse.view(shape), (out, lse))

    def prefill(
        self, q: Tensor, kv: Tensor, indices: Tensor, softmax_scale: float, out: Tensor | None,
        lse: Tensor | None, max_logits: Tensor | None, topk_length: Tensor | None,
        attn_sink: Tensor | None, plan: Any,
    ) -> Any:  # fmt: skip
        rows = []
        for t in range(q.shape[0]):
            limit = None if topk_length is None else topk_length[t]
            mask = self.valid(indices[t], kv.shape[0], limit)  # (h_kv, topk)
            slot = torch.where(mask, indices[t].long(), 0)
            k = kv[slot, torch.arange(self.key.h_kv)[:, None]].to(self.work)
            got = self.attend(
                self.heads(q[t : t + 1].to(self.work)), k, mask[:, None], softmax_scale
            )
            rows.append([self.unheads(x, 1)[0] for x in got])
        o, row_lse, top = (torch.stack(x) for x in zip(*rows, strict=True))
        o, row_lse = self.sink(o, row_lse, attn_sink)
        return (
            self.store(out, o, DTYPES[self.key.dtype]),
            self.store(max_logits, top, torch.float32),
            self.store(lse, row_lse, torch.float32),
        )

"""Kernels that look in the wrong place: lengths, pages, strides, offsets, sparse indices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.conformance.mutants.kernel import HonestKernel
from flashmla_hub.request import SPARSE_DECODE


class LastPartialPageDropped(HonestKernel):
    def visible(self, length: Tensor, keys: int) -> Tensor:
        page = self.key.page_block_size
        return super().visible(length, keys) & (torch.arange(keys) < length // page * page)


class ReadsPastLength(HonestKernel):
    """Attends to the whole last page."""

    def visible(self, length: Tensor, keys: int) -> Tensor:
        page = self.key.page_block_size
        return super().visible((length + page - 1) // page * page, keys)


class PageBoundary(HonestKernel):
    """Loses the last token of a row that ends with its page."""

    def visible(self, length: Tensor, keys: int) -> Tensor:
        ends = (length % self.key.page_block_size == 0).long()
        return super().visible(length, keys) & (torch.arange(keys) < length - ends)


class LastPageOfOneRow(HonestKernel):
    """The last row of the batch loses its last page."""

    def row(
        self, b: int, q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        if b == q.shape[0] - 1:
            page = self.key.page_block_size
            lengths = torch.where(lengths > page, (lengths - 1) // page * page, lengths)
        return super().row(b, q, cache, table, lengths, scale)


class PageOrderIgnored(HonestKernel):
    """Takes the pages of the pool in order, as a test with an arange table lets pass."""

    def pages(self, table_row: Tensor, length: Tensor, num_blocks: int) -> Tensor:
        pages = super().pages(table_row, length, num_blocks)
        return torch.arange(pages.shape[0]) % num_blocks


class SharedPages(HonestKernel):
    """A page that an earlier row reads too is taken for the next one of the pool."""

    def row(
        self, b: int, q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        mine = self.pages(table[b], lengths[b], cache.shape[0])
        used = torch.arange(table.shape[1]) * self.key.page_block_size < lengths[:b, None]
        taken = torch.zeros(mine.shape, dtype=torch.bool)
        for earlier, valid in zip(table[:b], used, strict=True):
            taken |= ((mine[:, None] == earlier) & valid).any(dim=1)
        swapped = torch.where(taken, (mine + 1) % cache.shape[0], mine).to(table.dtype)
        table = table.clone()
        table[b] = torch.where(
            torch.arange(table.shape[1]) * self.key.page_block_size < lengths[b],
            swapped, table[b],
        )  # fmt: skip
        return super().row(b, q, cache, table, lengths, scale)


class TableTailUsed(HonestKernel):
    """Follows the whole row of the block table, garbage past its prefix included."""

    def pages(self, table_row: Tensor, length: Tensor, num_blocks: int) -> Tensor:
        return table_row.long()


class ZeroTimesNan(HonestKernel):
    """Masks logits but multiplies the unused slots by a weight of zero."""

    def partial(
        self, q: Tensor, k: Tensor, mask: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(q, k, scale).masked_fill(~mask, -math.inf)
        top = logits.amax(dim=-1, keepdim=True)
        weights = self.weights(logits, torch.where(top == -math.inf, 0, top))
        return torch.matmul(weights, self.value(k)), weights.sum(dim=-1, keepdim=True), top


class NegativeLengthHuge(HonestKernel):
    """Reads lengths as unsigned: -1 is more than the table holds."""

    def lengths(self, cache_seqlens: Tensor, capacity: int) -> Tensor:
        return (cache_seqlens.long() % 2**32).clamp(0, capacity)

    def pages(self, table_row: Tensor, length: Tensor, num_blocks: int) -> Tensor:
        return super().pages(table_row, length, num_blocks).clamp(0, num_blocks - 1)


class FlatGather(HonestKernel):
    """Gathers by element offset into the pool, which subclasses get wrong."""

    def page_offset(self, cache: Tensor, pages: Tensor) -> Tensor:
        return pages * cache.stride(0)

    def token_stride(self, cache: Tensor) -> int:
        return cache.stride(1)

    def gather(self, cache: Tensor, pages: Tensor) -> Tensor:
        if self.key.kv_format != "dense":
            return super().gather(cache, pages)
        extent = 1 + sum((n - 1) * s for n, s in zip(cache.shape, cache.stride(), strict=True))
        flat = cache.as_strided((extent,), (1,))
        token = torch.arange(cache.shape[1]) * self.token_stride(cache)
        head = torch.arange(cache.shape[2]) * cache.stride(2)
        base = self.page_offset(cache, pages)[:, None, None] + token[:, None] + head
        at = base.flatten(0, 1)[..., None] + torch.arange(cache.shape[3])
        return flat[at.clamp(0, extent - 1)]


class WrapsAt31Bits(FlatGather):
    """Element offsets keep 31 bits."""

    def page_offset(self, cache: Tensor, pages: Tensor) -> Tensor:
        return super().page_offset(cache, pages) % 2**31


class WrapsAt4GiB(FlatGather):
    """Byte offsets keep 32 bits."""

    def page_offset(self, cache: Tensor, pages: Tensor) -> Tensor:
        size = cache.element_size()
        return super().page_offset(cache, pages) * size % 2**32 // size


class SignedOverflow(FlatGather):
    """Element offsets are int32: past 2^31 they turn negative, and the guard reads slot 0."""

    def page_offset(self, cache: Tensor, pages: Tensor) -> Tensor:
        return super().page_offset(cache, pages).to(torch.int32).long().clamp(min=0)


class PageStrideIgnored(FlatGather):
    def page_offset(self, cache: Tensor, pages: Tensor) -> Tensor:
        return pages * cache.shape[1] * cache.stride(1)


class TokenStrideIgnored(FlatGather):
    def token_stride(self, cache: Tensor) -> int:
        return cache.shape[2] * cache.shape[3]


class QueryStrideIgnored(HonestKernel):
    """Reads q as if it were contiguous."""

    def dense(self, *args: Any) -> Any:
        q = args[0]
        packed = q.as_strided(q.shape, torch.empty(q.shape, device="meta").stride())
        return super().dense(packed, *args[1:])


class DuplicatesMerged(HonestKernel):
    def valid(self, indices: Tensor, slots: int, limit: Tensor | None) -> Tensor:
        ok = super().valid(indices, slots, limit)
        n = indices.shape[-1]
        earlier = torch.arange(n) < torch.arange(n)[:, None]
        same = (indices[..., :, None] == indices[..., None, :]) & ok[..., None, :] & earlier
        return ok & ~same.any(dim=-1)


class MinusOneIsSlot0(HonestKernel):
    """An invalid entry counts as slot 0."""

    def valid(self, indices: Tensor, slots: int, limit: Tensor | None) -> Tensor:
        ok = super().valid(indices, slots, limit)
        return ok | ((indices == -1) & super().valid(torch.zeros_like(indices), slots, limit))

    def pick(self, cache: Tensor, indices: Tensor, valid: Tensor, kv_format: str) -> Tensor:
        return super().pick(cache, indices.clamp(min=0), valid, kv_format)


class OnlyMinusOneInvalid(HonestKernel):
    """Any other value out of range is clamped into the cache and read."""

    def valid(self, indices: Tensor, slots: int, limit: Tensor | None) -> Tensor:
        inside = torch.where(indices == -1, indices, indices.clamp(0, slots - 1))
        return super().valid(inside, slots, limit)

    def pick(self, cache: Tensor, indices: Tensor, valid: Tensor, kv_format: str) -> Tensor:
        inside = indices.clamp(-1, cache.shape[0] * cache.shape[1] - 1).clamp(min=0)
        return super().pick(cache, inside, valid, kv_format)


class TopkLengthIgnored(HonestKernel):
    def valid(self, indices: Tensor, slots: int, limit: Tensor | None) -> Tensor:
        return super().valid(indices, slots, None)


class ExtraIgnored(HonestKernel):
    def sparse(self, *args: Any) -> Any:
        return super().sparse(*args[:8], None, None, None, args[11])


class SinkIgnored(HonestKernel):
    def sink(self, out: Tensor, lse: Tensor, attn_sink: Tensor | None) -> tuple[Tensor, Tensor]:
        return out, lse


class SinkInLse(HonestKernel):
    def sink(self, out: Tensor, lse: Tensor, attn_sink: Tensor | None) -> tuple[Tensor, Tensor]:
        out, plain = super().sink(out, lse, attn_sink)
        if attn_sink is None:
            return out, plain
        with_sink = torch.logaddexp(plain, attn_sink.to(plain.dtype))
        return out, torch.where(plain == math.inf, plain, with_sink)


class ScalesIgnored(HonestKernel):
    """Dequantises every group with the scale of the token's first one."""

    def pick(self, cache: Tensor, indices: Tensor, valid: Tensor, kv_format: str) -> Tensor:
        k = super().pick(cache, indices, valid, kv_format)
        if kv_format != "v32" or self.key.op != SPARSE_DECODE:
            return k
        slot = torch.where(valid, indices.long(), 0)
        raw = cache[slot // cache.shape[1], slot % cache.shape[1]].contiguous().view(torch.uint8)
        scales = raw[..., 512:528].contiguous().view(torch.float32)
        ratio = (scales[..., :1] / scales).repeat_interleave(128, dim=-1)
        return torch.cat([k[..., :512] * ratio, k[..., 512:]], dim=-1)


class MaxLogitsUnscaled(HonestKernel):
    def prefill(self, *args: Any) -> Any:
        out, top, lse = super().prefill(*args)
        return out, top.div_(args[3]), lse

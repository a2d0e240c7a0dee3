"""Kernels that do not know memory as engines hold it, or values that small tests do not have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.conformance.mutants.kernel import HonestKernel
from flashmla_hub.request import DENSE_DECODE


class HeadOfListInvalid(HonestKernel):
    """A running maximum that starts at -inf: NaN where a list's first tile has no entry."""

    def attend(self, q: Tensor, k: Tensor, mask: Tensor, softmax_scale: float) -> Any:
        out, lse, top = super().attend(q, k, mask, softmax_scale)
        if self.key.op == DENSE_DECODE:
            return out, lse, top
        dead = mask.any(-1) & ~mask[..., :16].any(-1)
        return torch.where(dead[..., None], math.nan, out), lse, top


class SecondCachePacked(HonestKernel):
    """Reads the second cache's pages one behind the other, whatever their stride."""

    def sparse(self, *args: Any) -> Any:
        given = list(args)
        extra = given[8]
        if extra is not None and extra.stride(0) and self.key.kv_format == "dense":
            size = extra.shape[1] * extra.stride(1)
            given[8] = extra.as_strided(extra.shape, (size, *extra.stride()[1:]))
        return super().sparse(*given)


class ListOffsets31Bits(HonestKernel):
    """Page times stride in 32 bits, in the sparse paths: far pages are taken for the first."""

    def pick(self, cache: Tensor, indices: Tensor, valid: Tensor, kv_format: str) -> Tensor:
        page = torch.where(valid, indices, 0).long() // cache.shape[1]
        far = valid & (page * cache.stride(0) >= 2**31)
        near = torch.where(far, indices % cache.shape[1], indices)
        return super().pick(cache, near, valid, kv_format)


class FlatOffsets32Bits(HonestKernel):
    """sparse_prefill's byte offsets keep 32 bits."""

    def prefill(self, q: Tensor, kv: Tensor, indices: Tensor, *rest: Any) -> Any:
        reach = 2**32 // (kv.stride(0) * kv.element_size()) if kv.stride(0) else kv.shape[0]
        wrapped = torch.where(indices < kv.shape[0], indices % (reach + 1), indices)
        return super().prefill(q, kv, wrapped, *rest)


class QuantisedOffsets32Bits(HonestKernel):
    """Byte offsets of quantised pools keep 32 bits, in dense decode."""

    def gather(self, cache: Tensor, pages: Tensor) -> Tensor:
        if self.key.kv_format != "dense":
            pages = torch.where(pages * cache.stride(0) >= 2**32, 0, pages)
        return super().gather(cache, pages)


class EmptyRowsTimesQ(HonestKernel):
    """An empty row's out is 0 times q: NaN where a pad row's q is."""

    def run(self, call: Any) -> Any:
        result = super().run(call)
        result[0].add_(0 * call.q[..., :1].to(result[0].dtype))
        return result


class WantsFloat8(HonestKernel):
    """Takes quantised caches as float8 alone, and engines hold them as uint8."""

    bytes_type = torch.uint8

    def check(self, cache: Tensor) -> None:
        if cache.dtype == self.bytes_type:
            raise RuntimeError(f"expected Float8_e4m3fn, found {cache.dtype}")

    def dense(self, *args: Any) -> Any:
        self.check(args[1])
        return super().dense(*args)

    def sparse(self, *args: Any) -> Any:
        self.check(args[1])
        return super().sparse(*args)


class WantsUnsigned(WantsFloat8):
    """... or all but int8."""

    bytes_type = torch.int8


class NullSlotRead(HonestKernel):
    """Sparse: invalid entries read slot 0 and count on a weight of 0, which NaN does not heed."""

    def partial(self, q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Any:
        if self.key.op == DENSE_DECODE:
            return super().partial(q, k, mask, scale)
        logits = self.logits(q, k, scale).masked_fill(~mask, -math.inf)
        top = logits.amax(dim=-1, keepdim=True)
        weights = self.weights(logits, torch.where(top == -math.inf, 0, top))
        out = torch.where(mask.any(-1, keepdim=True), torch.matmul(weights, self.value(k)), 0)
        return out, weights.sum(dim=-1, keepdim=True), top


class WideTablePlan(HonestKernel):
    """Plans splits by the table's room: past 8192 tokens of it, splits without keys give NaN."""

    room = 0

    def dense(self, *args: Any) -> Any:
        self.room = args[2].shape[1] * self.key.page_block_size
        return super().dense(*args)

    def finish(self, out: Tensor, total: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = super().finish(out, total, top)
        return (out * math.nan if self.room > 8192 else out), lse


class EightQueries(HonestKernel):
    """From eight queries on, a row's last one misses its newest key."""

    def visible(self, length: Tensor, keys: int) -> Tensor:
        seen = super().visible(length, keys)
        if self.key.s_q < 8:
            return seen
        newest = torch.arange(keys) == length - 1
        last = torch.arange(self.key.s_q)[:, None] == self.key.s_q - 1
        return seen & ~(newest & last)


class HeadMajorIgnored(HonestKernel):
    """Takes q's head and query dimensions in memory for the other order."""

    def swapped(self, q: Tensor) -> Tensor:
        if self.key.q_strides == "packed" or q.dim() < 4 or q.stride(1) >= q.stride(2):
            return q
        return q.as_strided(q.shape, torch.empty(q.shape, device="meta").stride())

    def dense(self, *args: Any) -> Any:
        return super().dense(self.swapped(args[0]), *args[1:])

    def sparse(self, *args: Any) -> Any:
        return super().sparse(self.swapped(args[0]), *args[1:])


class BatchStrideIgnored(HonestKernel):
    """Takes rows of q one behind the other."""

    def dense(self, *args: Any) -> Any:
        q, row = args[0], args[0][0].numel()
        if q.stride(0) <= row:
            return super().dense(*args)
        return super().dense(q.as_strided(q.shape, (row, *q.stride()[1:])), *args[1:])


class ExpandedRows(HonestKernel):
    """Steps through an expanded q all the same: rows past the first read what lies behind it."""

    def dense(self, *args: Any) -> Any:
        q = args[0]
        if q.stride(0) or q.shape[0] < 2:
            return super().dense(*args)
        rolled = torch.stack([q[0].roll(row, -1) for row in range(q.shape[0])])
        return super().dense(rolled, *args[1:])


class FiniteMask(HonestKernel):
    """Masked logits are -30000 instead of -inf: they outweigh a row whose own lie below."""

    def partial(self, q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Any:
        out, total, top = super().partial(q, k, mask, scale)
        low = (top < -30000) & (total > 0)
        return torch.where(low, 0, out), total, torch.where(low, -30000.0, top)


class InferenceRefused(HonestKernel):
    """Counts versions of its inputs, which inference tensors have not."""

    def dense(self, *args: Any) -> Any:
        args[0]._version + args[1]._version
        return super().dense(*args)


class SparseBatchVariant(HonestKernel):
    """Splits lists by the size of the batch: right to the last bits, and these differ."""

    def sparse(self, *args: Any) -> Any:
        self.split = max(8, 64 // args[0].shape[0])
        return super().sparse(*args)

    def prefill(self, *args: Any) -> Any:
        self.split = max(8, 64 // args[0].shape[0])
        return super().prefill(*args)


class RecordsIgnored(HonestKernel):
    """Steps from token to token by their own bytes, whatever else lies between."""

    def packed(self, args: tuple[Any, ...]) -> list[Any]:
        given, cache = list(args), args[1]
        if self.key.kv_format == "v32" and cache.stride(1) != cache.shape[3]:
            given[1] = cache.as_strided(
                cache.shape, (cache.stride(0), cache.shape[3], cache.shape[3], 1)
            )
        return given

    def dense(self, *args: Any) -> Any:
        return super().dense(*self.packed(args))

    def sparse(self, *args: Any) -> Any:
        return super().sparse(*self.packed(args))


class FlatStrideIgnored(HonestKernel):
    """Takes sparse_prefill's tokens one behind the other."""

    def prefill(self, q: Tensor, kv: Tensor, *rest: Any) -> Any:
        packed = kv.as_strided(kv.shape, (kv[0].numel(), kv.shape[2], 1))
        return super().prefill(q, packed, *rest)

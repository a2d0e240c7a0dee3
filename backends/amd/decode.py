"""``mla_decode_fwd`` over a list of token slots."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import buffer, deliver
from flashmla_hub.call import DenseDecode
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

# The bf16 kernels address the cache by a 32-bit byte offset and return about zero past it, without
# an error: ROCm/aiter#2768 and #5765 (of 2026-09, open for h_q 16, 32 and 128).
MAX_CACHE_BYTES = 1 << 32
PAD = 256  # ids past the last: the vendor's own test leaves room for prefetch


class Slots(NamedTuple):
    """The plan: ``indptr`` (batch + 1,) and ``slots`` (>= indptr[-1],) int32."""

    indptr: Tensor
    slots: Tensor


class DecodeKernel(BoundKernel):
    """The first eight arguments go by position; their successors moved between versions and go by
    name, those that the installed version has."""

    plans = True

    def __init__(self, module: ModuleType, key: KernelKey, device: DeviceInfo) -> None:
        self._call = module.mla_decode_fwd
        self._key = key
        self._units = device.multiprocessors
        taken = inspect.signature(self._call).parameters
        if "return_lse" not in taken:
            raise NotSupportedError(
                "amd", "lse", "an aiter without return_lse", "amd-aiter 0.1.9 or later"
            )
        wanted: dict[str, Any] = {"page_size": 1, "nhead_kv": 1, "return_lse": True}
        if "causal" in taken:  # without it the kernel is always causal, as s_q > 1 is declared
            wanted["causal"] = True
        self._fixed = {name: value for name, value in wanted.items() if name in taken}

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Slots:
        """The slots of all rows, one after another; no read of the device."""
        assert block_table is not None
        assert cache_seqlens is not None
        batch, width = block_table.shape
        page = self._key.page_block_size
        capacity = width * page
        lens = cache_seqlens.clamp(0, capacity)
        indptr = lens.new_zeros(batch + 1)
        torch.cumsum(lens, 0, out=indptr[1:])
        token = torch.arange(capacity, dtype=torch.int32, device=lens.device)
        seen = token < lens.unsqueeze(1)
        slot = block_table.repeat_interleave(page, 1) * page + token % page
        spare = batch * capacity + PAD - 1  # where tokens past a row's length are put aside
        place = torch.where(seen, indptr[:-1].unsqueeze(1) + token, spare).long()
        slots = lens.new_zeros(batch * capacity + PAD)
        slots.scatter_(0, place.flatten(), slot.masked_fill(~seen, 0).flatten())
        return Slots(indptr, slots)

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, _, _, scale, out, lse, plan = call[:8]
        if k_cache.numel() * k_cache.element_size() > MAX_CACHE_BYTES:
            raise NotSupportedError(
                "amd",
                "cache bytes",
                k_cache.numel() * k_cache.element_size(),
                f"<= {MAX_CACHE_BYTES}: AITER wraps past 4 GiB (ROCm/aiter#5765)",
            )
        batch, s_q, h_q, d_qk = q.shape
        d_v = self._key.d_v
        result = buffer(out, q, (batch, s_q, h_q, d_v))
        step = batch * s_q
        indptr = torch.arange(0, step + 1, s_q, dtype=torch.int32, device=q.device)
        _, got = self._call(
            q.view(step, h_q, d_qk),
            k_cache.view(-1, 1, 1, d_qk),
            result.view(step, h_q, d_v),
            indptr,
            plan.indptr,
            plan.slots,
            torch.ones(batch, dtype=torch.int32, device=q.device),
            s_q,
            sm_scale=scale,
            num_kv_splits=self._splits(batch),
            **self._fixed,
        )
        return deliver(result, out), deliver(got.view(batch, s_q, h_q).transpose(1, 2), lse)

    def _splits(self, batch: int) -> int:
        """Enough to fill the device, and never 1: the single-split path stores no lse."""
        return max(2, min(16, -(-self._units // batch)))

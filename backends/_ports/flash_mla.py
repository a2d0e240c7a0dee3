"""Calling a ``flash_mla`` of the first three generations of the interface.

The positional calls below work unchanged on all three (the third ignores the arguments of
``get_mla_metadata``). Metadata is opaque: one generation returns uninitialised memory, another an
object bound to the values of the lengths. It is made anew for each call, on the device, so lengths
may change in place between calls (contract C2.3, ``plans_per_call``).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import deliver, safe_rows
from flashmla_hub.call import DenseDecode
from flashmla_hub.request import KernelKey

Metadata = Callable[[Tensor, int, int], tuple[Any, Any]]


class DenseKernel(BoundKernel):
    """Dense decode through ``module.flash_mla_with_kvcache``.

    ``metadata`` replaces ``module.get_mla_metadata``; batches larger than ``max_batch`` are served
    in parts.
    """

    def __init__(
        self,
        module: ModuleType,
        key: KernelKey,
        *,
        metadata: Metadata | None = None,
        max_batch: int | None = None,
    ) -> None:
        self._call = module.flash_mla_with_kvcache
        self._metadata: Metadata = metadata or module.get_mla_metadata
        self._key = key
        self._max_batch = max_batch

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, cache_seqlens, scale, out, lse = call[:7]
        table, lens = safe_rows(block_table, cache_seqlens, k_cache.shape[1])
        limit = self._max_batch or q.shape[0]
        parts = [
            self._part(q[i : i + limit], k_cache, table[i : i + limit], lens[i : i + limit], scale)
            for i in range(0, q.shape[0], limit)
        ]
        if len(parts) == 1:
            return deliver(parts[0][0], out), deliver(parts[0][1], lse)
        outs, lses = zip(*parts, strict=True)
        return deliver(torch.cat(outs), out), deliver(torch.cat(lses), lse)

    def _part(
        self, q: Tensor, k_cache: Tensor, table: Tensor, lens: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        key = self._key
        meta, splits = self._metadata(lens, key.s_q * key.h_q // key.h_kv, key.h_kv)
        got: tuple[Tensor, Tensor] = self._call(
            q, k_cache, table, lens, key.d_v, meta, splits, softmax_scale=scale, causal=key.causal
        )
        return got

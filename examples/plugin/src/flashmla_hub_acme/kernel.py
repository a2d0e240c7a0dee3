"""The hub's call in terms of the port's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.request import KernelKey
from flashmla_hub_acme import port


class Kernel(BoundKernel):
    """Dense decode, bound to ``key``. Immutable; holds no device memory."""

    def __init__(self, key: KernelKey) -> None:
        self.key = key

    def run(self, *args: Any) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse, _ = args
        got, got_lse = port.paged_mla(
            q.squeeze(1), k_cache.squeeze(2), block_table, cache_seqlens, softmax_scale
        )
        return _deliver(got.unsqueeze(1), out), _deliver(got_lse.unsqueeze(-1), lse)


def _deliver(result: Tensor, target: Tensor | None) -> Tensor:
    """In the caller's tensor where there is one."""
    return result if target is None else target.copy_(result)

"""The hub's call in terms of the port's."""

from __future__ import annotations

from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import DenseDecode
from flashmla_hub.request import KernelKey
from flashmla_hub_acme import port


class Kernel(BoundKernel):
    """Dense decode, bound to ``key``. Immutable; holds no device memory."""

    def __init__(self, key: KernelKey) -> None:
        self.key = key

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        got, got_lse = port.paged_mla(
            call.q.squeeze(1), call.k_cache.squeeze(2), call.block_table, call.cache_seqlens,
            call.softmax_scale,
        )  # fmt: skip
        return _deliver(got.unsqueeze(1), call.out), _deliver(got_lse.unsqueeze(-1), call.lse)


def _deliver(result: Tensor, target: Tensor | None) -> Tensor:
    """In the caller's tensor where there is one."""
    return result if target is None else target.copy_(result)

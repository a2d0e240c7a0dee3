"""What every rewrite's wrapper shares."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.request import KernelKey


class Wrapper(BoundKernel):
    """A kernel for the ``wide`` key made of one for the ``narrow`` key. Immutable."""

    def __init__(self, inner: BoundKernel, wide: KernelKey, narrow: KernelKey) -> None:
        self.inner, self.wide, self.narrow = inner, wide, narrow
        self.plans = inner.plans

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        return self.inner.plan(block_table, cache_seqlens)


def deliver(result: Tensor, target: Tensor | None) -> Tensor:
    """``result`` in ``target`` where one was asked for, else itself, contiguous."""
    if target is None:
        return result.contiguous()
    if target is not result:
        target.copy_(result)
    return target

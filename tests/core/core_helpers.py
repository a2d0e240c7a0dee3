"""Small requests, and backends that the core's tests register."""

from __future__ import annotations

from typing import Any

import torch

import flashmla_hub as hub
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.capabilities import ANY, Capabilities


def dense(
    batch=2, s_q=1, h_q=4, h_kv=1, page=8, width=3, lens=None, seed=0, dtype=torch.float32,
    d_qk=576,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a dense call, as keywords; lengths fit the table, pages are shuffled."""
    g = torch.Generator().manual_seed(seed)
    pages = batch * width
    table = torch.randperm(pages, generator=g).view(batch, width).to(torch.int32)
    if lens is None:
        lens = [page * width - 3 * row for row in range(batch)]
    return {
        "q": torch.randn(batch, s_q, h_q, d_qk, generator=g).to(dtype),
        "k_cache": torch.randn(pages, page, h_kv, d_qk, generator=g).to(dtype),
        "block_table": table,
        "cache_seqlens": torch.tensor(lens, dtype=torch.int32),
        "head_dim_v": 256 if d_qk == 320 else 512,
    }


def sparse(batch=2, s_q=1, h_q=4, page=8, pages=5, topk=6, seed=0, dtype=torch.float32):
    """The arguments of a sparse call over an unquantised cache, as keywords."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.randint(-2, pages * page, (batch, s_q, topk), generator=g)
    return {
        "q": torch.randn(batch, s_q, h_q, 576, generator=g).to(dtype),
        "k_cache": torch.randn(pages, page, 1, 576, generator=g).to(dtype),
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "indices": indices.to(torch.int32),
    }


class Delegate(BoundKernel):
    """Runs the torch backend's kernel for the same key, and remembers what it was given."""

    def __init__(self, kernel: BoundKernel, calls: list[Any], finish: Any) -> None:
        self.kernel, self.calls, self.finish = kernel, calls, finish

    def run(self, call: Any) -> Any:
        self.calls.append(call)
        return self.finish(self.kernel.run(call))


class Narrow(Backend):
    """A right backend that takes only what ``declared`` says; for rewrites and for selection."""

    info = BackendInfo(summary="for tests")

    def __init__(self, name="narrow", rank=70, finish=lambda result: result, **declared: Any):
        self.name, self._rank, self.finish = name, rank, finish
        declared = {
            "dtypes": ("float32", "bfloat16"),
            "s_q": ANY,
            "page_block_size": ANY,
        } | declared
        self.declared = (Capabilities(**declared),)
        self.calls: list[Any] = []
        self.bound: list[Any] = []

    def capabilities(self, device: Any) -> tuple[Capabilities, ...]:
        return self.declared

    def rank(self, choice: Any, device: Any) -> int:
        return self._rank

    def bind(self, key: Any, device: Any) -> BoundKernel:
        self.bound.append(key)
        kernel = hub.get_backend("torch").bind(key, device)
        return Delegate(kernel, self.calls, self.finish)

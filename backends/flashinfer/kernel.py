"""Calls of FlashInfer's wrapper, and its plan."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import deliver
from flashmla_hub.call import DenseDecode
from flashmla_hub.request import KernelKey

if TYPE_CHECKING:
    from flashmla_hub.bench.shapes import Case

WORKSPACE_BYTES = 256 << 20


class Plan:
    """The lengths of one step on the host, and the wrappers planned from them (one for each
    table and scale that the step's layers use)."""

    def __init__(self, lens: Tensor) -> None:
        self.lens = lens
        self.wrappers: dict[tuple[Any, ...], Any] = {}


class PagedMLA(BoundKernel):
    plans = True

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._wrapper = module.BatchMLAPagedAttentionWrapper
        # Older releases return the lse in base 2 without a choice.
        parameters = inspect.signature(self._wrapper.run).parameters
        self._natural = "return_lse_base_on_e" in parameters
        self._key = key

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Plan:
        assert block_table is not None
        assert cache_seqlens is not None
        capacity = block_table.shape[1] * self._key.page_block_size
        return Plan(cache_seqlens.clamp(0, capacity).cpu())

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, _, scale, out, lse, plan = call[:8]
        batch, s_q, h_q, d_qk = q.shape
        d_v = self._key.d_v
        wrapper = self._planned(q, block_table, scale, plan)
        rows = q.reshape(batch * s_q, h_q, d_qk)
        cache = k_cache.squeeze(2)
        options = {"return_lse_base_on_e": True} if self._natural else {}
        new_out, new_lse = wrapper.run(
            rows[..., :d_v], rows[..., d_v:], cache[..., :d_v], cache[..., d_v:],
            return_lse=True, **options,
        )  # fmt: skip
        if not self._natural:
            new_lse = new_lse * math.log(2.0)
        new_lse = new_lse.view(batch, s_q, h_q).transpose(1, 2)
        return deliver(new_out.view(batch, s_q, h_q, d_v), out), deliver(new_lse, lse)

    def _planned(self, q: Tensor, table: Tensor, scale: float, plan: Plan) -> Any:
        name = (table.data_ptr(), tuple(table.shape), table.stride(0), scale)
        wrapper = plan.wrappers.get(name)
        if wrapper is None:
            wrapper = plan.wrappers[name] = self._make(q, table, scale, plan.lens)
        return wrapper

    def _make(self, q: Tensor, table: Tensor, scale: float, lens: Tensor) -> Any:
        """A wrapper that reads the table where it lies, so that page ids may change in place."""
        batch, s_q, h_q, d_qk = q.shape
        key, device = self._key, q.device
        step = table.stride(0)
        entries = (batch - 1) * step + table.shape[1]
        memory = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        wrapper = self._wrapper(memory, backend="auto")
        starts = torch.arange(batch + 1, dtype=torch.int32)
        wrapper.plan(
            starts * s_q, starts * step, table.as_strided((entries,), (1,)), lens,
            h_q, key.d_v, d_qk - key.d_v, key.page_block_size, key.causal, scale,
            q.dtype, q.dtype,
        )  # fmt: skip
        return wrapper


def peer_call(module: ModuleType, case: Case) -> Callable[[], Tensor]:
    """One decode of ``case`` as FlashInfer's own users call it."""
    batch, s_q, h_q, d_qk = case.q.shape
    d_v, page = 512, case.k_cache.shape[1]
    memory = torch.empty(2 * WORKSPACE_BYTES, dtype=torch.uint8, device=case.q.device)
    wrapper = module.BatchMLAPagedAttentionWrapper(memory, backend="auto")
    pages = torch.tensor([-(-n // page) for n in case.lengths], dtype=torch.int32)
    starts = torch.zeros(batch + 1, dtype=torch.int32)
    starts[1:] = torch.cumsum(pages, 0)
    columns = torch.arange(case.block_table.shape[1])
    ids = case.block_table[(columns < pages.unsqueeze(1)).to(case.q.device)].contiguous()
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32) * s_q, starts, ids,
        torch.tensor(case.lengths, dtype=torch.int32), h_q, d_v, d_qk - d_v, page,
        case.shape.causal, case.softmax_scale, case.q.dtype, case.q.dtype,
    )  # fmt: skip
    rows, cache = case.q.view(batch * s_q, h_q, d_qk), case.k_cache.squeeze(2)
    parts = [t.contiguous() for x in (rows, cache) for t in (x[..., :d_v], x[..., d_v:])]
    return lambda: wrapper.run(*parts, return_lse=False).view(batch, s_q, h_q, d_v)

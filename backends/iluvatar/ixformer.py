"""The paged MLA operator of ixformer."""

from __future__ import annotations

import inspect
from types import ModuleType

from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends._ports.rows import buffer, deliver, safe_rows
from flashmla_hub.call import DenseDecode
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey


class PagedKernel(BoundKernel):
    """``vllm_paged_attention_mla(output, query, kv_cache, scale, block_tables, context_lens,
    max_context_len, ..., return_softmax_lse=True)``.

    ``max_context_len`` is a number on the host: the table's capacity is an upper bound that needs
    no synchronisation. Context lengths must be above 0.
    """

    def __init__(self, module: ModuleType, key: KernelKey) -> None:
        self._call = module.vllm_paged_attention_mla
        if "return_softmax_lse" not in inspect.signature(self._call).parameters:
            raise NotSupportedError(
                "iluvatar",
                "lse",
                "an ixformer whose vllm_paged_attention_mla does not return it",
                "a build with the parameter return_softmax_lse (a newer CoreX SDK)",
            )
        self._key = key

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, cache_seqlens, scale, out, lse = call[:7]
        batch, _, h_q, d_qk = q.shape
        page = k_cache.shape[1]
        table, lens = safe_rows(block_table, cache_seqlens, page)
        result = buffer(out, q, (batch, 1, h_q, self._key.d_v))
        _, got = self._call(
            result.view(batch, h_q, self._key.d_v),
            q.view(batch, h_q, d_qk),
            k_cache.view(-1, page, d_qk),
            scale,
            table,
            lens,
            table.shape[1] * page,
            return_softmax_lse=True,
        )
        if got.shape != (batch, h_q):
            raise NotSupportedError(
                "iluvatar", "lse shape", tuple(got.shape), f"(batch, h_q) = {(batch, h_q)}"
            )
        return deliver(result, out), deliver(got.unsqueeze(-1), lse)

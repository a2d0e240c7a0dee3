"""vLLM's FLASHMLA_SPARSE with the hub's kernels in it: DeepSeek-V3.2, GLM 5 and their like.

vLLM's own class does the indexer's bookkeeping, the prefill workspaces and context parallelism, and
funnels every attention of a sparse layer into two methods. Those two are the hub's here; nothing
else is. Head counts stay what they are: FlashMLA takes 64 and 128 and vLLM pads to them, the hub
asks what its backends take.

The class keeps the name FLASHMLA_SPARSE, because vLLM derives the cache dtype from the name
(``fp8`` means 656-byte records under it, plain e4m3 under any other). Written against vLLM 0.33.
"""
# vLLM's bases are Any where it is not installed:
# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backends.mla.flashmla_sparse import FlashMLASparseBackend, FlashMLASparseImpl

import flashmla_hub as hub
from flashmla_hub.engines import selection
from flashmla_hub.engines.vllm.common import batch_invariant, query_heads

RECORDS = {"fp8": "v32", "fp8_e4m3": "v32", "fp8_ds_mla": "v32"}  # vLLM's cache dtype -> kv_format
UNQUANTISED = (None, "auto", "bfloat16")
TOPK = 2048  # what the models of this backend pick; asked about before one is loaded


class HubSparseMLABackend(FlashMLASparseBackend):
    supported_kv_cache_dtypes = ("auto", "bfloat16", "fp8_ds_mla", "fp8")

    @staticmethod
    def get_impl_cls() -> type[HubSparseMLAImpl]:
        return HubSparseMLAImpl

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        return True  # supports_combination asks the hub, which knows the device

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: Any,
    ) -> str | None:
        name = cls.get_name()
        if not use_sparse:
            return f"{name} of flashmla_hub: sparse layers only"
        if has_sink:
            return f"{name} of flashmla_hub: vLLM hands this backend no sink"
        if kv_cache_dtype not in (*UNQUANTISED, *RECORDS):
            known = ", ".join(map(str, (*UNQUANTISED[1:], *RECORDS)))
            return f"{name} of flashmla_hub: kv_cache_dtype {kv_cache_dtype}, takes {known}"
        record = RECORDS.get(str(kv_cache_dtype))
        if record is not None and head_size not in (576, 512):
            return f"{name} of flashmla_hub: head size {head_size} in records, takes 576 | 512"
        # A model without rope keeps 656-byte records, their rope part zero, and pads its queries.
        width = head_size if record is None else 576
        asked: dict[str, Any] = {
            "dtype": str(dtype).removeprefix("torch."),
            "h_q": query_heads(),
            "topk": TOPK,
        }
        keys = [selection.prefill_key(width, topk_length=True, **asked)]
        if record is not None:
            keys.append(selection.sparse_key(width, kv_format=record, **asked))
        return next((reason for key in keys if (reason := selection.refusal(key))), None)


class HubSparseMLAImpl(FlashMLASparseImpl):
    @staticmethod
    def _compute_fp8_decode_padded_heads(num_heads: int) -> int:
        return num_heads

    def _fp8_flash_mla_kernel(
        self, q: Tensor, kv_c_and_k_pe_cache: Tensor, topk_indices: Tensor, kernel_metadata: Any
    ) -> tuple[Tensor, Tensor]:
        """Every query becomes a request of its own: a batch that vLLM mixes is one of any length,
        and a kernel is bound for each s_q. The metadata is FlashMLA's own and of no use here.

        Args:
            q: (batch, s_q, h_q, 576).
            kv_c_and_k_pe_cache: (num_blocks, page_block_size, 656) records.
            topk_indices: (batch, s_q, topk) slots, -1 for none.

        Returns:
            out (batch, s_q, h_q, 512), and lse (batch, h_q, s_q) with +inf where a query has no
            slot; vLLM masks those rows itself before it merges over ranks.
        """
        batch, s_q = q.shape[:2]
        out, lse = hub.flash_mla_with_kvcache(
            q.flatten(0, 1).unsqueeze(1),
            kv_c_and_k_pe_cache.view(torch.uint8).unsqueeze(-2),
            None,
            None,
            self.kv_lora_rank,
            softmax_scale=self.softmax_scale,
            is_fp8_kvcache=True,
            indices=topk_indices.flatten(0, 1).unsqueeze(1),
            batch_invariant=batch_invariant(),
            kv_format="v32",
        )
        return out.view(batch, s_q, *out.shape[2:]), lse.view(batch, s_q, -1).transpose(1, 2)

    def _bf16_flash_mla_kernel(
        self,
        q: Tensor,
        kv_c_and_k_pe_cache: Tensor,
        topk_indices: Tensor,
        topk_length: Tensor | None = None,
        actual_num_heads: int | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """q (tokens, heads or more, d_qk), rows of any shape (..., d_qk), slots (tokens, topk) ->
        out (tokens, heads, 512) and lse (tokens, heads). What vLLM pads in q and out stays unread
        and unwritten."""
        heads = q.shape[1] if actual_num_heads is None else actual_num_heads
        output, _, lse = hub.flash_mla_sparse_fwd(
            q[:, :heads],
            kv_c_and_k_pe_cache.view(-1, 1, kv_c_and_k_pe_cache.shape[-1]),
            topk_indices.view(q.shape[0], 1, -1),
            self.softmax_scale,
            self.kv_lora_rank,
            topk_length=topk_length,
            out=None if out is None else out[:, :heads],
            batch_invariant=batch_invariant(),
        )
        return output, lse

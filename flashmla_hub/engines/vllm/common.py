"""What the accelerator form and the CPU form share: how vLLM's decode step maps onto one call.

Written against vLLM 0.32; the same classes ran under 0.29 to 0.32.
"""
# vLLM's bases are Any where it is not installed:
# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import envs
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.attention.mla_attention import QueryLenSupport

import flashmla_hub as hub
from flashmla_hub.parallel import local_seq_lens


def batch_invariant() -> bool:
    """Whether vLLM runs in its batch-invariant mode."""
    return bool(getattr(envs, "VLLM_BATCH_INVARIANT", False))


def query_heads() -> int:
    """Query heads of one call: this rank's, times the ranks DCP gathers over."""
    config = get_current_vllm_config_or_none()
    if config is None or config.model_config is None:
        return 16
    parallel = config.parallel_config
    heads = int(config.model_config.get_num_attention_heads(parallel))
    return heads * int(parallel.decode_context_parallel_size)


class HubBuilderMixin:
    """Goes before MLACommonMetadataBuilder."""

    query_len_support = QueryLenSupport.UNIFORM  # speculative decoding arrives as s_q > 1

    def __init__(
        self,
        kv_cache_spec: Any,
        layer_names: list[str],
        vllm_config: Any,
        device: torch.device,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if vllm_config.parallel_config.decode_context_parallel_size > 1:
            # Under DCP every query becomes a row of its own: lengths may differ within a batch.
            self.query_len_support = QueryLenSupport.VARLEN
            kwargs["supports_dcp_with_varlen"] = True
        super().__init__(  # type: ignore[call-arg]  # a mixin: vLLM's builder comes after it
            kv_cache_spec, layer_names, vllm_config, device, *args, **kwargs
        )


class HubImplMixin:
    """Goes before MLACommonImpl or CPUMLAImpl; needs ``kv_lora_rank``, ``scale``, ``dcp_rank`` and
    ``need_to_return_lse_for_decode`` of them."""

    can_return_lse_for_decode = True
    lse_base_on_e = True
    supports_dcp = True
    supports_pcp = False  # MLACommonImpl inherits True; prefill context parallelism is untested
    supports_mtp_with_cp_non_trivial_interleave_size = True

    kv_lora_rank: int
    scale: float
    dcp_rank: int
    need_to_return_lse_for_decode: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config_or_none()
        parallel = None if config is None else config.parallel_config
        # CPUMLAImpl pins dcp_world_size to 1.
        self.dcp_world_size = 1 if parallel is None else parallel.decode_context_parallel_size
        self.interleave = 1 if parallel is None else parallel.cp_kv_cache_interleave_size

    def forward_mqa(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        kv_c_and_k_pe_cache: Tensor,
        attn_metadata: Any,
        layer: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Decode ``attn_metadata.num_decodes`` requests.

        Args:
            q: (tokens, h_q, d_qk), or its nope and rope parts.
            kv_c_and_k_pe_cache: (num_blocks, page_block_size, d_qk).

        Returns:
            out (tokens, h_q, kv_lora_rank) and lse (tokens, h_q) float32, natural logarithm, or
            None where vLLM does not merge over ranks.
        """
        query = torch.cat(q, dim=-1) if isinstance(q, tuple) else q
        decode = attn_metadata.decode
        if self.dcp_world_size > 1 and attn_metadata.max_query_len > 1:
            rows, table, lens = self._one_row_per_query(query, attn_metadata)
            sched = None  # the step's metadata is bound to the unflattened shape
        else:
            rows = query.unflatten(0, (attn_metadata.num_decodes, -1))
            table, lens, sched = decode.block_table, decode.seq_lens, getattr(decode, "sched", None)
        out, lse = hub.flash_mla_with_kvcache(
            rows,
            kv_c_and_k_pe_cache.unsqueeze(-2),
            table,
            lens,
            self.kv_lora_rank,
            sched,
            softmax_scale=self.scale,
            causal=True,
            batch_invariant=batch_invariant(),
        )
        out = out.flatten(0, 1)
        if not self.need_to_return_lse_for_decode:
            return out, None
        return out, lse.transpose(1, 2).flatten(0, 1).contiguous()

    def _one_row_per_query(
        self, query: Tensor, attn_metadata: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, 1, h_q, d_qk), their block-table rows and local lengths, without a host sync.

        A shard's length says nothing about causality (contract C7.2), and vLLM's decode batches
        may hold requests with different query lengths here.
        """
        decode, last = attn_metadata.decode, attn_metadata.num_decodes - 1
        tokens = torch.arange(query.shape[0], device=query.device, dtype=torch.int32)
        start = attn_metadata.query_start_loc[: last + 2].to(torch.int32)
        row = torch.searchsorted(start[1:].contiguous(), tokens, right=True).clamp(max=last)
        visible = decode.dcp_tot_seq_lens[row] - start[row + 1] + tokens + 1
        lens = local_seq_lens(visible, self.dcp_world_size, self.dcp_rank, self.interleave)
        return query.unsqueeze(1), decode.block_table[row], lens

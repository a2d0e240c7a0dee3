"""FLASHMLA_HUB as vLLM sees it: dense bf16/fp16 MLA decode, speculative decoding, DCP, graphs.

What it supports is what the hub's ``explain`` accepts on this device, so that vLLM prints the
hub's reasons. vLLM asks in its worker, after it has set the device.
"""
# vLLM's bases are Any where it is not installed:
# mypy: disable-error-code="misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
)
from vllm.v1.attention.backend import AttentionCGSupport

import flashmla_hub as hub
from flashmla_hub.engines import selection
from flashmla_hub.engines.vllm.common import (
    HubBuilderMixin,
    HubImplMixin,
    batch_invariant,
    query_heads,
)
from flashmla_hub.engines.vllm.plugin import NAME

PAGE_SIZES = (64, 128, 32, 16)  # 64 first: what FlashMLA itself takes


class HubMLABackend(MLACommonBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[HubMLAImpl]:
        return HubMLAImpl

    @staticmethod
    def get_builder_cls() -> type[HubMetadataBuilder]:
        return HubMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        # vLLM takes an empty list for "any": name the base width, supports_combination refuses it.
        sizes = selection.HEAD_DIM_V
        return [d for d in sizes if selection.accepted(selection.decode_key(d))] or [576]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int]:
        keys = {p: selection.decode_key(page_block_size=p) for p in PAGE_SIZES}
        return [p for p, key in keys.items() if selection.accepted(key)] or [64]

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """The page size of the best backend; vLLM's default of 16 would pass it by."""
        return selection.best_page_size(PAGE_SIZES) or default_block_size

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return selection.accepted(selection.decode_key(batch_invariant=True))

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # a uniform batch is reshaped by its token count

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
        if use_sparse or has_sink or not use_mla:
            return (
                f"{NAME}: dense MLA decode only; sparse layers run through the hub with "
                "FLASHMLA_HUB_ENGINES=vllm-sparse, see docs/engines.md"
            )
        key = selection.decode_key(
            head_size,
            dtype=str(dtype).removeprefix("torch."),
            page_block_size=_kernel_page(block_size),
            h_q=query_heads(),
            batch_invariant=batch_invariant(),
        )
        return selection.refusal(key)


@dataclass
class HubDecodeMetadata(MLACommonDecodeMetadata):
    sched: Any = None  # SchedMeta: one per step, shared by its layers


@dataclass
class HubMetadata(MLACommonMetadata[HubDecodeMetadata]):
    pass


class HubMetadataBuilder(HubBuilderMixin, MLACommonMetadataBuilder[HubMetadata]):
    reorder_batch_threshold: int = 1  # vLLM raises it to 1 + the number of speculative tokens

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device, HubMetadata)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """UNIFORM_BATCH when the backend this model will run on claims CUDA graphs, else NEVER."""
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        heads = model.get_num_attention_heads(parallel) * parallel.decode_context_parallel_size
        key = selection.decode_key(
            kv_cache_spec.head_size,
            dtype=str(model.dtype).removeprefix("torch."),
            page_block_size=_kernel_page(kv_cache_spec.block_size),
            h_q=heads,
            batch_invariant=batch_invariant(),
        )
        level = AttentionCGSupport
        return level.UNIFORM_BATCH if selection.captures(key) else level.NEVER

    def _build_decode(
        self,
        block_table_tensor: Tensor,
        seq_lens_device: Tensor,
        *args: Any,
        dcp_tot_seq_lens_device: Tensor | None = None,
        **kwargs: Any,
    ) -> HubDecodeMetadata:
        return HubDecodeMetadata(
            block_table=block_table_tensor,
            seq_lens=seq_lens_device,
            dcp_tot_seq_lens=dcp_tot_seq_lens_device,
            sched=hub.get_mla_metadata()[0],
        )


class HubMLAImpl(HubImplMixin, MLACommonImpl[HubMetadata]):
    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        **mla_args: Any,
    ) -> None:
        refused = {
            "alibi_slopes": alibi_slopes,
            "sliding_window": sliding_window,
            "logits_soft_cap": logits_soft_cap,
            "attn_type": None if attn_type == "decoder" else attn_type,
        }
        if any(refused.values()):
            given = ", ".join(f"{name}={value}" for name, value in refused.items() if value)
            raise NotImplementedError(f"{NAME} does not take {given}: dense decoder MLA only")
        super().__init__(
            num_heads,
            head_size,
            scale,
            num_kv_heads,
            alibi_slopes,
            sliding_window,
            kv_cache_dtype,
            logits_soft_cap,
            attn_type,
            kv_sharing_target_layer_name,
            **mla_args,
        )


def _kernel_page(block_size: int | None) -> int:
    """The page the kernel will see: vLLM splits its blocks into the largest size that divides."""
    if block_size is None:
        return 64
    pages = HubMLABackend.get_supported_kernel_block_sizes()
    return max((p for p in pages if block_size % p == 0), default=block_size)

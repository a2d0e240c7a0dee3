"""vLLM 0.32's classes for MLA attention, as far as the plug-in touches them.

Names, signatures and fields are vLLM's; the bodies do the least that the plug-in relies on.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

_current_config: Any = None


def get_current_vllm_config_or_none():
    return _current_config


def set_current_vllm_config(config: Any) -> None:
    global _current_config
    _current_config = config


class AttentionCGSupport(enum.Enum):
    ALWAYS = 3
    UNIFORM_BATCH = 2
    UNIFORM_SINGLE_TOKEN_DECODE = 1
    NEVER = 0


class QueryLenSupport(enum.Enum):
    SINGLE_ONLY = "single_only"
    UNIFORM = "uniform"
    VARLEN = "varlen"


class MLACommonBackend:
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [1]

    @staticmethod
    def get_name():
        return "TRITON_MLA"

    @staticmethod
    def get_builder_cls():
        return MLACommonMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls):
        return [320, 512, 576]

    @classmethod
    def get_preferred_block_size(cls, default_block_size):
        return default_block_size

    @classmethod
    def supports_batch_invariance(cls):
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls):
        return True

    @classmethod
    def supports_combination(
        cls, head_size, dtype, kv_cache_dtype, block_size, use_mla, has_sink, use_sparse,
        use_mm_prefix, device_capability,
    ):  # fmt: skip
        return None

    @classmethod
    def validate_configuration(cls, **config: Any) -> list[str]:
        """The reasons vLLM prints, for the questions the plug-in answers."""
        reasons = []
        if config["head_size"] not in cls.get_supported_head_sizes():
            reasons.append("head_size not supported")
        if config["dtype"] not in cls.supported_dtypes:
            reasons.append("dtype not supported")
        if config["kv_cache_dtype"] not in cls.supported_kv_cache_dtypes:
            reasons.append("kv_cache_dtype not supported")
        sizes = cls.get_supported_kernel_block_sizes()
        if config["block_size"] and all(config["block_size"] % s for s in sizes):
            reasons.append("block_size not supported")
        if config.pop("use_batch_invariant", False) and not cls.supports_batch_invariance():
            reasons.append("batch invariance not supported")
        if config.pop("use_dcp", False) and not cls.get_impl_cls().supports_dcp:
            reasons.append("DCP not supported")
        if config.pop("use_pcp", False) and cls.get_impl_cls().supports_pcp is False:
            reasons.append("PCP not supported")
        combination = cls.supports_combination(**config)
        return reasons if combination is None else [*reasons, combination]


@dataclass
class MLACommonDecodeMetadata:
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    dcp_tot_seq_lens: torch.Tensor | None


D = TypeVar("D", bound=MLACommonDecodeMetadata)


@dataclass
class MLACommonMetadata(Generic[D]):
    num_reqs: int
    max_query_len: int
    max_seq_len: int
    num_actual_tokens: int
    query_start_loc: torch.Tensor
    slot_mapping: torch.Tensor
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    causal: bool = True
    head_dim: int | None = None
    prefill: Any = None
    decode: D | None = None


M = TypeVar("M", bound=MLACommonMetadata)


class MLACommonMetadataBuilder(Generic[M]):
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.SINGLE_ONLY
    reorder_batch_threshold: int = 1

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
        return cls._cudagraph_support

    def __init__(
        self,
        kv_cache_spec,
        layer_names,
        vllm_config,
        device,
        metadata_cls=None,
        supports_dcp_with_varlen=False,
    ):
        self.kv_cache_spec, self.vllm_config, self.device = kv_cache_spec, vllm_config, device
        self.metadata_cls = metadata_cls or MLACommonMetadata
        self.supports_dcp_with_varlen = supports_dcp_with_varlen

    def _build_decode(
        self,
        block_table_tensor,
        seq_lens_device,
        max_seq_len,
        query_start_loc_cpu,
        query_start_loc_device,
        num_decode_tokens,
        max_query_len,
        dcp_tot_seq_lens_device,
    ):
        raise NotImplementedError

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        """Decode-only batches: what vLLM's own build does with them."""
        m = common_attn_metadata
        decode = self._build_decode(
            block_table_tensor=m.block_table_tensor,
            seq_lens_device=m.seq_lens if m.dcp_local_seq_lens is None else m.dcp_local_seq_lens,
            max_seq_len=m.max_seq_len,
            query_start_loc_cpu=m.query_start_loc_cpu,
            query_start_loc_device=m.query_start_loc,
            num_decode_tokens=m.num_actual_tokens,
            max_query_len=m.max_query_len,
            dcp_tot_seq_lens_device=None if m.dcp_local_seq_lens is None else m.seq_lens,
        )
        return self.metadata_cls(
            num_reqs=m.num_reqs,
            max_query_len=m.max_query_len,
            max_seq_len=m.max_seq_len,
            num_actual_tokens=m.num_actual_tokens,
            query_start_loc=m.query_start_loc,
            slot_mapping=m.slot_mapping,
            num_decodes=m.num_reqs,
            num_decode_tokens=m.num_actual_tokens,
            num_prefills=0,
            decode=decode,
        )


class MLACommonImpl(Generic[M]):
    can_return_lse_for_decode = False
    lse_base_on_e = True
    supports_pcp = True
    supports_dcp = False
    supports_mtp_with_cp_non_trivial_interleave_size = False

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        config = get_current_vllm_config_or_none()
        world = 1 if config is None else config.parallel_config.decode_context_parallel_size
        self.dcp_world_size, self.dcp_rank = world, 0
        self.need_to_return_lse_for_decode = world > 1 and self.can_return_lse_for_decode
        return self

    def __init__(
        self,
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
        q_lora_rank,
        kv_lora_rank,
        qk_nope_head_dim,
        qk_rope_head_dim,
        qk_head_dim,
        v_head_dim,
        kv_b_proj,
        indexer=None,
        q_pad_num_heads=None,
    ):
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.kv_lora_rank = kv_lora_rank

    def forward_mqa(self, q, kv_c_and_k_pe_cache, attn_metadata, layer):
        raise NotImplementedError


class CPUMLABackend(MLACommonBackend):
    @staticmethod
    def get_name():
        return "CPU_MLA"

    @staticmethod
    def get_impl_cls():
        return CPUMLAImpl


class CPUMLAImpl(MLACommonImpl):
    def __init__(
        self,
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
    ):
        self.scale, self.kv_lora_rank = float(scale), mla_args["kv_lora_rank"]
        self.dcp_world_size = 1  # as vLLM's does

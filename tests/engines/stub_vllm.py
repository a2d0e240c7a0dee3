"""The part of vLLM 0.32 that the plug-in touches, so that its glue is tested without vLLM.

Names, signatures and fields are vLLM's; the bodies do the least that the plug-in relies on.
test_stub_vllm.py holds this file against the real package wherever that is installed.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

import torch

MLA_ATTENTION = "vllm.model_executor.layers.attention.mla_attention"
BACKEND = "vllm.v1.attention.backend"
CPU_MLA = "vllm.v1.attention.backends.mla.cpu_mla"
REGISTRY = "vllm.v1.attention.backends.registry"


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


_current_config: Any = None


def get_current_vllm_config_or_none():
    return _current_config


def set_current_vllm_config(config: Any) -> None:
    global _current_config
    _current_config = config


def _make_registry(new_names: bool) -> ModuleType:
    """The registry of 0.32 and later, or (``new_names=False``) of 0.14 to 0.31."""

    class AttentionBackendEnum(enum.Enum):
        FLASHMLA = "vllm.v1.attention.backends.mla.flashmla.FlashMLABackend"
        CPU_MLA = "vllm.v1.attention.backends.mla.cpu_mla.CPUMLABackend"
        CUSTOM = None

        def get_path(self, include_classname=True):
            return overrides.get(self.name, self.value)

    overrides: dict[str, str] = {}

    def register(cls, name, value):
        if name in cls._member_map_:
            raise ValueError(f"Backend {name} already exists")
        member = object.__new__(cls)
        member._name_, member._value_ = name, value
        setattr(cls, name, member)
        cls._member_map_[name] = member
        cls._value2member_map_[value] = member
        cls._member_names_.append(name)
        return member

    def register_backend(backend, class_path=None, is_mamba=False):
        if isinstance(backend, str) and new_names:
            AttentionBackendEnum.register(backend, class_path)
        elif isinstance(backend, AttentionBackendEnum):
            overrides[backend.name] = class_path

    if new_names:
        AttentionBackendEnum.register = classmethod(register)
    return _module(REGISTRY, [AttentionBackendEnum], register_backend=register_backend)


def _module(name: str, members: list[Any] = [], **attributes: Any) -> ModuleType:  # noqa: B006
    module = ModuleType(name)
    for member in members:
        setattr(module, member.__name__, member)
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def modules(new_names: bool = True) -> dict[str, ModuleType]:
    envs = _module("vllm.envs", VLLM_BATCH_INVARIANT=False)
    config = _module("vllm.config", [get_current_vllm_config_or_none])
    found = [
        _module("vllm", envs=envs, config=config, __version__="0.32.0"),
        envs,
        config,
        _module("vllm.model_executor"),
        _module("vllm.model_executor.layers"),
        _module("vllm.model_executor.layers.attention"),
        _module(
            MLA_ATTENTION,
            [
                QueryLenSupport,
                MLACommonBackend,
                MLACommonDecodeMetadata,
                MLACommonMetadata,
                MLACommonMetadataBuilder,
                MLACommonImpl,
            ],
        ),
        _module("vllm.v1"),
        _module("vllm.v1.attention"),
        _module(BACKEND, [AttentionCGSupport]),
        _module("vllm.v1.attention.backends"),
        _module("vllm.v1.attention.backends.mla"),
        _module(CPU_MLA, [CPUMLABackend, CPUMLAImpl]),
        _make_registry(new_names),
    ]
    return {module.__name__: module for module in found}


@contextmanager
def installed(new_names: bool = True) -> Iterator[dict[str, ModuleType]]:
    """``import vllm`` gives the stub for the duration; the plug-in's modules are imported anew."""

    def ours(name: str) -> bool:
        return name.split(".")[0] == "vllm" or name.startswith("flashmla_hub.engines.vllm")

    saved = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in saved:
        del sys.modules[name]
    stubs = modules(new_names)
    sys.modules.update(stubs)
    try:
        yield stubs
    finally:
        set_current_vllm_config(None)
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(saved)


def vllm_config(heads: int = 16, dcp: int = 1, interleave: int = 1) -> SimpleNamespace:
    """As much of a VllmConfig as the plug-in reads."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16, get_num_attention_heads=lambda parallel: heads
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=dcp, cp_kv_cache_interleave_size=interleave
        ),
    )


def signature(function: Any) -> list[str]:
    """Parameter names, as vLLM passes them by keyword."""
    return list(inspect.signature(function).parameters)

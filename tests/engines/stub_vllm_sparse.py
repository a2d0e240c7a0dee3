"""The part of vLLM 0.33 that the sparse plug-in touches: the class it derives from, the functions
it stands in front of, and a V4 layer's way of binding them.

test_vllm_source.py holds these signatures against vLLM's own source.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import stub_vllm

SPARSE = "vllm.v1.attention.backends.mla.flashmla_sparse"
FUNCTIONS = "vllm.v1.attention.ops.flashmla"
V4_LAYER = "vllm.models.deepseek_v4.nvidia.flashmla"


class FlashMLASparseBackend:
    supported_kv_cache_dtypes = ("auto", "bfloat16", "fp8_ds_mla", "fp8", "nvfp4_ds_mla")

    @staticmethod
    def get_name():
        return "FLASHMLA_SPARSE"

    @staticmethod
    def get_impl_cls():
        return FlashMLASparseImpl

    @classmethod
    def supports_compute_capability(cls, capability):
        return capability.major in (9, 10)

    @classmethod
    def supports_combination(
        cls, head_size, dtype, kv_cache_dtype, block_size, use_mla, has_sink, use_sparse,
        use_mm_prefix, device_capability,
    ):  # fmt: skip
        return None


class FlashMLASparseImpl:
    """``__init__`` of the real class reserves workspaces and asks vLLM's config."""

    @staticmethod
    def _compute_fp8_decode_padded_heads(num_heads):
        return 64 if num_heads <= 64 else 128

    def __init__(self, num_heads, scale, kv_lora_rank=512):
        self.num_heads, self.softmax_scale, self.kv_lora_rank = num_heads, scale, kv_lora_rank
        self.fp8_decode_padded_heads = self._compute_fp8_decode_padded_heads(num_heads)

    def _fp8_flash_mla_kernel(self, q, kv_c_and_k_pe_cache, topk_indices, kernel_metadata):
        raise AssertionError("vLLM's own kernel")

    def _bf16_flash_mla_kernel(
        self,
        q,
        kv_c_and_k_pe_cache,
        topk_indices,
        topk_length=None,
        actual_num_heads=None,
        out=None,
    ):
        raise AssertionError("vLLM's own kernel")


class FlashMLASchedMeta:
    pass


def flash_mla_with_kvcache(*args: Any, **kwargs: Any) -> Any:
    return "vllm's own", args, kwargs


def flash_mla_sparse_fwd(*args: Any, **kwargs: Any) -> Any:
    return "vllm's own", args, kwargs


@contextmanager
def installed(version: str = "0.33.0") -> Iterator[dict[str, ModuleType]]:
    """``stub_vllm`` with the sparse modules in it."""
    with stub_vllm.installed() as modules:
        functions = (flash_mla_with_kvcache, flash_mla_sparse_fwd)
        extra = [
            _module(SPARSE, FlashMLASparseBackend, FlashMLASparseImpl),
            _module("vllm.v1.attention.ops"),
            _module(FUNCTIONS, *functions, FlashMLASchedMeta),
            _module(V4_LAYER, *functions),  # bound by ``from ... import``
        ]
        for module in extra:
            sys.modules[module.__name__] = modules[module.__name__] = module
        modules["vllm"].__version__ = version  # type: ignore[attr-defined]
        registry = modules[stub_vllm.REGISTRY]
        _add(registry.AttentionBackendEnum, "FLASHMLA_SPARSE", f"{SPARSE}.FlashMLASparseBackend")
        yield modules


def _add(backends: type[enum.Enum], name: str, path: str) -> None:
    backends.register(name, path)  # type: ignore[attr-defined]


def _module(name: str, *members: Any) -> ModuleType:
    module = ModuleType(name)
    for member in members:
        setattr(module, member.__name__, member)
    return module

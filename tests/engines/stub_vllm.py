"""The part of vLLM 0.32 that the plug-in touches, so that its glue is tested without vLLM: its
modules, with the classes of stub_vllm_mla.py.

test_stub_vllm.py holds both files against the real package wherever that is installed.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from stub_vllm_mla import (
    AttentionCGSupport,
    CPUMLABackend,
    CPUMLAImpl,
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
    get_current_vllm_config_or_none,
    set_current_vllm_config,
)

MLA_ATTENTION = "vllm.model_executor.layers.attention.mla_attention"
BACKEND = "vllm.v1.attention.backend"
CPU_MLA = "vllm.v1.attention.backends.mla.cpu_mla"
REGISTRY = "vllm.v1.attention.backends.registry"


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

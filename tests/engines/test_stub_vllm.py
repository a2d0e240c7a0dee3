"""The stub against the real vLLM: what the plug-in overrides, calls or reads must be there, with
the same parameters. Runs where vLLM is installed (.ci/engines)."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import stub_vllm as stub

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/engines installs it")

MLA = "mla_attention"


def real(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("module", "cls", "method"),
    [
        (stub.MLA_ATTENTION, "MLACommonBackend", "get_supported_kernel_block_sizes"),
        (stub.MLA_ATTENTION, "MLACommonBackend", "get_supported_head_sizes"),
        (stub.MLA_ATTENTION, "MLACommonBackend", "get_preferred_block_size"),
        (stub.MLA_ATTENTION, "MLACommonBackend", "supports_batch_invariance"),
        (stub.MLA_ATTENTION, "MLACommonBackend", "supports_device_cpu_query_lens_mismatch"),
        (stub.MLA_ATTENTION, "MLACommonBackend", "supports_combination"),
        (stub.MLA_ATTENTION, "MLACommonMetadataBuilder", "__init__"),
        (stub.MLA_ATTENTION, "MLACommonMetadataBuilder", "_build_decode"),
        (stub.MLA_ATTENTION, "MLACommonMetadataBuilder", "get_cudagraph_support"),
        (stub.MLA_ATTENTION, "MLACommonMetadataBuilder", "build"),
        (stub.MLA_ATTENTION, "MLACommonImpl", "__init__"),
        (stub.MLA_ATTENTION, "MLACommonImpl", "forward_mqa"),
        (stub.CPU_MLA, "CPUMLAImpl", "__init__"),
    ],
)
def test_methods_take_the_same_parameters(module: str, cls: str, method: str) -> None:
    theirs = stub.signature(getattr(real(module, cls), method))
    assert stub.signature(getattr(getattr(stub, cls), method)) == theirs


@pytest.mark.parametrize("cls", ["MLACommonDecodeMetadata", "MLACommonMetadata"])
def test_metadata_has_the_same_fields(cls: str) -> None:
    def fields(owner: Any) -> list[tuple[str, bool]]:
        return [(f.name, f.default is dataclasses.MISSING) for f in dataclasses.fields(owner)]

    assert fields(getattr(stub, cls)) == fields(real(stub.MLA_ATTENTION, cls))


@pytest.mark.parametrize(
    ("module", "cls"),
    [(stub.BACKEND, "AttentionCGSupport"), (stub.MLA_ATTENTION, "QueryLenSupport")],
)
def test_levels_are_the_same(module: str, cls: str) -> None:
    ours, theirs = getattr(stub, cls), real(module, cls)
    assert {m.name: m.value for m in ours} == {m.name: m.value for m in theirs}


def test_class_attributes_exist() -> None:
    impl = real(stub.MLA_ATTENTION, "MLACommonImpl")
    for name in (
        "can_return_lse_for_decode",
        "lse_base_on_e",
        "supports_pcp",
        "supports_dcp",
        "supports_mtp_with_cp_non_trivial_interleave_size",
        "need_to_return_lse_for_decode",
    ):
        assert hasattr(impl, name), name

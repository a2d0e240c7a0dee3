"""The accelerator form's builder and metadata with the CPU form's impl: runs inside vLLM on CPU."""

from __future__ import annotations

from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

from flashmla_hub.engines.vllm.backend import HubMetadataBuilder
from flashmla_hub.engines.vllm.cpu import HubCPUMLAImpl


class AcceleratorBuilderBackend(CPUMLABackend):
    @staticmethod
    def get_builder_cls() -> type[HubMetadataBuilder]:
        return HubMetadataBuilder

    @staticmethod
    def get_impl_cls() -> type[HubCPUMLAImpl]:
        return HubCPUMLAImpl

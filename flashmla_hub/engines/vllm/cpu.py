"""The CPU form: takes the place of vLLM's CPU_MLA, for tests and laptops. Opt-in, see plugin.py."""
# vLLM's bases are Any where it is not installed:
# mypy: disable-error-code="misc"

from __future__ import annotations

from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadataBuilder
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl

from flashmla_hub.engines.vllm.common import HubBuilderMixin, HubImplMixin


class HubCPUMetadataBuilder(HubBuilderMixin, MLACommonMetadataBuilder):
    pass


class HubCPUMLAImpl(HubImplMixin, CPUMLAImpl):
    """Prefill and cache writes are vLLM's own, decode is the hub's."""


class HubCPUMLABackend(CPUMLABackend):
    @staticmethod
    def get_builder_cls() -> type[HubCPUMetadataBuilder]:
        return HubCPUMetadataBuilder

    @staticmethod
    def get_impl_cls() -> type[HubCPUMLAImpl]:
        return HubCPUMLAImpl

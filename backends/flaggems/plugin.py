"""FlagGems: Triton kernels for many vendors, the fallback where a vendor has no port of its own.

Released versions have sparse decode over the 584-byte FP8 cache; later ones add dense decode.
Both are tested on NVIDIA alone: their tests for other vendors are skipped upstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import signature
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import ANY, Capabilities, DeviceClass, between
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import PACKED, PAGE_STRIDED, SPARSE_DECODE, KernelKey

FLASHMLA_HUB_PROTOCOL = 2

NVIDIA = ("sm_80", "sm_86", "sm_89", "sm_90")
FP8_NVIDIA = ("sm_89", "sm_90")  # the kernel reads e4m3 values with the hardware's conversion
MODULE = "flag_gems.fused.flash_mla_with_kvcache"
FILE = "flag_gems/fused/flash_mla_with_kvcache.py"
SOURCE = "https://github.com/flagos-ai/FlagGems"
OTHERS = tuple(
    map(DeviceClass, ("metax", "moore_threads", "iluvatar", "hygon", "cambricon", "enflame"))
)


class FlagGems(Port):
    """Dense decode of later versions: one query a row."""

    name = "flaggems"
    worth = 25
    info = BackendInfo(
        summary="FlagGems' Triton dense decode: fallback on several vendors",
        vendor="FlagGems",
        package="flag_gems",
        versions="builds with flash_mla_with_kvcache.get_mla_metadata",
        source=f"{SOURCE} (ed2508b)",
        confidence="medium",
    )
    declarations = (
        Capabilities(
            devices=(DeviceClass("nvidia", NVIDIA), *OTHERS),
            h_q=between(1, 128),
            causal=(False,),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=(
                "contiguous_q",
                "contiguous_kv",
                "split_pages",
                "fold_s_q",
                "repair_empty_rows",
            ),
        ),
    )

    def distribution(self) -> Distribution | None:
        return next(iter(foreign.distributions("flag_gems")), None)

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return (f"flag_gems is not installed: pip install flag_gems, or build {SOURCE}",)
        if signature.parameters(distribution, FILE, "get_mla_metadata") is None:
            return (
                f"flag_gems {distribution.version} has no dense MLA decode (no get_mla_metadata in "
                f"{MODULE}); build the head of {SOURCE}",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        return DenseKernel(foreign.load(MODULE, self.distribution()), key)


class FlagGemsSparse(FlagGems):
    """Sparse decode over the ``model1`` FP8 cache."""

    name = "flaggems_sparse"
    info = BackendInfo(
        summary="FlagGems' Triton sparse decode over the 584-byte FP8 cache",
        vendor="FlagGems",
        package="flag_gems",
        versions="builds with flag_gems.fused.flash_mla_with_kvcache",
        source=f"{SOURCE} (11d612f)",
        confidence="medium",
    )
    declarations = tuple(
        Capabilities(
            op=SPARSE_DECODE,
            devices=(DeviceClass("nvidia", FP8_NVIDIA),),
            head_dims=((512, 512),),
            h_q=between(1, 128),
            page_block_size=ANY,
            kv_formats=("model1",),
            kv_strides=(PACKED, PAGE_STRIDED),
            causal=(False,),
            topk=ANY,
            topk_length=True,
            attn_sink=sink,
            extra_topk=ANY,
            extra_page_block_size=ANY,
            extra_topk_length=True,
            alignment=16,
            empty_rows=False,
            # with a sink it asks the host whether the sink is -inf everywhere
            hazards=("synchronises",) if sink else (),
            rewrites=("contiguous_q", "contiguous_kv", "fold_s_q", "repair_empty_rows"),
        )
        for sink in (False, True)
    )

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return super().missing()
        if signature.parameters(distribution, FILE, "flash_mla_with_kvcache") is None:
            return (
                f"flag_gems {distribution.version} has no {MODULE}; upgrade, or build {SOURCE}",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.flaggems.sparse import SparseKernel

        return SparseKernel(foreign.load(MODULE, self.distribution()), key)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (FlagGems(), FlagGemsSparse())

"""Iluvatar CoreX. What is used in production is an operator of ixformer; the source of the
vendor's FlashMLA branch is not public, and its wheel is taken only by its ``+corex`` stamp.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import owners
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import Capabilities, DeviceClass, between, one_of
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import KernelKey

FLASHMLA_HUB_PROTOCOL = 2

DEVICES = (DeviceClass("iluvatar"),)


class Iluvatar(Port):
    """``vllm_paged_attention_mla`` of ixformer: one query a row, no causal argument."""

    name = "iluvatar"
    worth = 66
    info = BackendInfo(
        summary="ixformer's vllm_paged_attention_mla: dense decode on CoreX",
        vendor="Iluvatar",
        package="ixformer",
        versions="builds whose operator returns the lse (+corex 4.x)",
        source="ixformer.inference.functions as shipped; vLLM-Iluvatar's callers",
        confidence="medium",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            h_q=between(1, 128),
            page_block_size=one_of(16),
            causal=(False,),
            alignment=16,
            empty_rows=False,
            hazards=("lse_unverified",),
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
        return next(iter(foreign.distributions("ixformer")), None)

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                "ixformer is not installed; it comes with the CoreX SDK (pip wheel ixformer "
                "...+corex...)",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.iluvatar.ixformer import PagedKernel

        module = foreign.load("ixformer.inference.functions", self.distribution())
        return PagedKernel(module, key)


class IluvatarFlashMLA(Port):
    """A ``flash_mla`` stamped ``+corex``: called as the first generation, unverified."""

    name = "iluvatar_flash_mla"
    worth = 68
    info = BackendInfo(
        summary="Iluvatar's build of flash_mla: dense decode on CoreX",
        vendor="Iluvatar",
        package="flash_mla",
        versions="...+corex...",
        source="the stamp of Iluvatar's wheels; Deep-Spark/FlashMLA is not public",
        confidence="low",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 4),
            h_q=between(1, 128),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            hazards=("lse_unverified",),
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
        return owners.find("iluvatar")

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                f"no flash_mla stamped +corex: found {owners.describe_installed()}; build branch "
                "iluvatar_flashmla of Deep-Spark/FlashMLA in the CoreX image",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        return DenseKernel(foreign.load("flash_mla", self.distribution()), key)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Iluvatar(), IluvatarFlashMLA())

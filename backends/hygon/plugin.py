"""Hygon: ``flash_mla`` from OpenDAS/MLAttention, known from its callers only (SGLang's and vLLM's
DCU forks, xLLM): its source is not public, so its interface is probed and limits are the callers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import owners
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import Capabilities, DeviceClass, between
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import KernelKey

FLASHMLA_HUB_PROTOCOL = 2


class Hygon(Port):
    """Dense decode of Hygon's ``flash_mla``."""

    name = "hygon"
    worth = 68
    info = BackendInfo(
        summary="Hygon's flash_mla (MLAttention): dense decode on DCU",
        vendor="Hygon",
        package="flash_mla",
        versions="1.2.0, or stamped +das/dtk",
        source="callers of OpenDAS/MLAttention (SGLang's and vLLM's DCU forks, xLLM)",
        confidence="medium",
    )
    declarations = (
        Capabilities(
            devices=(DeviceClass("hygon"),),
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 4),
            h_q=between(1, 128),
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
        return owners.find("hygon")

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                f"Hygon's flash_mla is not installed: found {owners.describe_installed()}; install "
                "the flash_mla wheel of your DTK release from Hygon's developer site (OpenDAS)",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel
        from flashmla_hub.backends.hygon.probe import metadata_of

        module = foreign.load("flash_mla", self.distribution())
        return DenseKernel(module, key, metadata=metadata_of(module))


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Hygon(),)

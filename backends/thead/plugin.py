"""T-Head PPU: FlashMLA-for-sail, the third generation's interface.

Its head counts and s_q are DeepSeek's; its page size is not checked, and 64 is what its callers
use. Prefill documents its lse in base 2.
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
from flashmla_hub.request import PACKED, TOKEN_STRIDED, KernelKey

FLASHMLA_HUB_PROTOCOL = 2


class THead(Port):
    """Dense decode of FlashMLA-for-sail."""

    name = "thead"
    worth = 70
    info = BackendInfo(
        summary="FlashMLA-for-sail: dense decode on T-Head PPU",
        vendor="T-Head",
        package="flash_mla",
        versions="2.1.0+dev...",
        source="https://github.com/t-head/FlashMLA-for-sail (00fed6a)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            devices=(DeviceClass("thead"),),
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 4),
            h_q=between(1, 128),
            q_strides=(PACKED, TOKEN_STRIDED),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=("contiguous_kv", "split_pages", "fold_s_q", "repair_empty_rows"),
        ),
    )

    def distribution(self) -> Distribution | None:
        return owners.find("thead")

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                f"T-Head's flash_mla is not installed: found {owners.describe_installed()}; build "
                "https://github.com/t-head/FlashMLA-for-sail in the PPU SDK image",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        return DenseKernel(foreign.load("flash_mla", self.distribution()), key)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (THead(),)

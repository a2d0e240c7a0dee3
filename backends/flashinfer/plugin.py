"""FlashInfer: dense decode through ``flashinfer.mla.BatchMLAPagedAttentionWrapper``.

Its schedule is made on the host from the lengths, so it waits for the device and cannot be
captured with lengths that change; what it reads past a row's end is not promised to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import ANY, Capabilities, DeviceClass, between
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import PACKED, PAGE_STRIDED, TOKEN_STRIDED, KernelKey

if TYPE_CHECKING:
    from torch import Tensor

    from flashmla_hub.bench.shapes import Case

FLASHMLA_HUB_PROTOCOL = 2

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90")
GET = "pip install flashinfer-python"


class FlashInfer(Port):
    """Dense decode with a plan for each set of lengths."""

    name = "flashinfer"
    worth = 62
    info = BackendInfo(
        summary="FlashInfer's paged MLA attention: dense decode",
        vendor="NVIDIA",
        package="flashinfer-python",
        versions=">=0.2.6",
        source="https://github.com/flashinfer-ai/flashinfer",
    )
    declarations = (
        Capabilities(
            devices=(DeviceClass("nvidia", ARCHS),),
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 16),
            h_q=between(1, 128),
            page_block_size=ANY,
            kv_strides=(PACKED, PAGE_STRIDED, TOKEN_STRIDED),
            alignment=16,
            empty_rows=False,
            hazards=("needs_finite_cache", "synchronises", "plans_per_metadata"),
            rewrites=("contiguous_q", "repair_empty_rows"),
        ),
    )

    def distribution(self) -> Distribution | None:
        return next(iter(foreign.distributions("flashinfer-python")), None)

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return (f"FlashInfer is not installed; {GET}",)
        if foreign.source(distribution, "flashinfer/mla/__init__.py") is None and (
            foreign.source(distribution, "flashinfer/mla.py") is None
        ):
            return (f"flashinfer-python {distribution.version} has no MLA attention; {GET} -U",)
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.flashinfer.kernel import PagedMLA

        return PagedMLA(foreign.load("flashinfer.mla", self.distribution()), key)

    def peer_call(self, case: Case) -> Callable[[], Tensor]:
        """Planned beforehand, without the lse, on caches already split as FlashInfer keeps them."""
        from flashmla_hub.backends.flashinfer.kernel import peer_call

        return peer_call(foreign.load("flashinfer.mla", self.distribution()), case)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (FlashInfer(),)

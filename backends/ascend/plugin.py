"""Huawei Ascend: torch_npu's MLA operator cannot serve the contract, and is not called.

``torch_npu.atb.npu_multi_head_latent_attention`` returns no lse and takes the lengths as a list
on the host, a synchronisation for each layer. DeepSeek's own Ascend 950 build serves sparse V4.1
caches only, a layout that is not supported yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports.base import Port, always_refuses
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import KernelKey

FLASHMLA_HUB_PROTOCOL = 2

REASON = (
    "torch_npu.atb.npu_multi_head_latent_attention returns no lse and needs the lengths on the "
    "host, so it cannot serve this call; use backend='torch' (runs on npu tensors), or register "
    "your own through the entry point group flashmla_hub.backends"
)


class Ascend(Port):
    """Refuses, and says how to go on."""

    name = "ascend"
    info = BackendInfo(
        summary="torch_npu's MLA operator: returns no lse; always refuses",
        vendor="Huawei Ascend",
        package="torch_npu",
        versions="any",
        source="torch_npu.atb.npu_multi_head_latent_attention as called by vLLM-Ascend",
        confidence="medium",
    )
    declarations = always_refuses("ascend", REASON)

    def distribution(self) -> Distribution | None:
        return next(iter(foreign.distributions("torch_npu")), None)

    def missing(self) -> tuple[str, ...]:
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        raise NotSupportedError(self.name, "request", key.summary(), REASON)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Ascend(),)

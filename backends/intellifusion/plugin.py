"""Intellifusion NNP: the port is known from DeepSeek's README, its interface is not.

It is published on Gitee (Intellifusion_2025/tyllm, python/tylang/flash_mla.py) as a kernel in a
language of its own, tylang; neither a signature nor a torch device type could be verified. Nothing
is guessed: every request is refused with the way forward.
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
    "Intellifusion's port is published only on Gitee, as tyllm/python/tylang/flash_mla.py; its "
    "call signature has not been verified, so it is not called. Register your own implementation "
    "through the entry point group flashmla_hub.backends (docs/adding-a-backend.md)"
)


class Intellifusion(Port):
    """Refuses, and says how to go on."""

    name = "intellifusion"
    info = BackendInfo(
        summary="Intellifusion's tylang kernel: known, interface unverified; always refuses",
        vendor="Intellifusion",
        package="tylang",
        versions="unknown",
        source="DeepSeek FlashMLA's README; gitee.com/Intellifusion_2025/tyllm",
        confidence="low",
    )
    declarations = always_refuses("intellifusion", REASON)

    def distribution(self) -> Distribution | None:
        found = (d for name in ("tylang", "tyllm") for d in foreign.distributions(name))
        return next(found, None)

    def missing(self) -> tuple[str, ...]:
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        raise NotSupportedError(self.name, "request", key.summary(), REASON)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Intellifusion(),)

"""What the Acme port takes. Cheap to import: the port itself is imported by ``bind``.

The declaration is a promise in both directions: all it names works, all else is refused. The
conformance suite holds the backend to it.
"""

from __future__ import annotations

from flashmla_hub import hookimpl
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.capabilities import (
    Capabilities,
    DeviceClass,
    between,
    one_of,
    unsupported_reasons,
)
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.hookspecs import BackendQuery
from flashmla_hub.request import ChoiceKey, KernelKey

FLASHMLA_HUB_PROTOCOL = 2

DECLARED = (
    Capabilities(
        devices=(DeviceClass("acme"), DeviceClass("cpu")),
        h_q=between(8, 128, 8),
        page_block_size=one_of(16),
        causal=(False,),
        plans_per_call=True,
        empty_rows=False,
        lse_base="2",
        rewrites=(
            "pad_heads",
            "contiguous_q",
            "contiguous_kv",
            "split_pages",
            "fold_s_q",
            "lse_base",
            "repair_empty_rows",
        ),
    ),
)


class Acme(Backend):
    """The Acme port."""

    name = "acme"
    version = "0.1.0"
    info = BackendInfo(
        summary="Acme's paged MLA decode",
        vendor="Acme",
        package="flashmla-hub-acme",
        versions="0.1.0",
        source="https://example.org/acme",
    )

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return DECLARED

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        return 65 if device.vendor == "acme" else 5  # on the CPU, below the torch backend

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(DECLARED, key, device)
        if reasons:  # the suite opens the hub's gate: a backend refuses by itself
            raise NotSupportedError(self.name, "request", key.summary(), "; ".join(reasons))
        from flashmla_hub_acme.kernel import Kernel

        return Kernel(key)


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    """Acme's torch extension has a device type of its own: a sign that nobody else shows."""
    if probe.type != "acme":
        return None
    return DeviceInfo(
        vendor="acme",
        arch="a1",
        type=probe.type,
        index=probe.index,
        name=probe.device_name(),
        rule="torch device type 'acme'",
    )


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> tuple[Backend, ...]:
    return (Acme(),)

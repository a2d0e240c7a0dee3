"""Hygon DCU through DTK: poses as HIP; its torch has ``__hcu_version__``.

Source: FlagGems runtime/common.py (vendor attribute table). An older build without the attribute
is known by a gfx number that AMD never shipped, or by the tag of its torch wheel.
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import describe, gcn_arch, is_hygon
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {"hygon": {"gfx*": "dcu k100"}}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if not is_hygon(probe):
        return None
    sure = hasattr(probe.torch, "__hcu_version__")
    return describe(
        probe,
        "hygon",
        gcn_arch(probe),
        runtime=f"DTK {getattr(probe.torch, '__hcu_version__', '')}".strip(),
        confidence="high" if sure else "medium",
        rule="torch.__hcu_version__"
        if sure
        else "torch.version.hip, Hygon's gfx number or +das/dtk",
    )

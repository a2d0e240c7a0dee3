"""The CPU, and ``meta``, where shapes are traced without data."""

from __future__ import annotations

from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {"cpu": {}}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type not in ("cpu", "meta"):
        return None
    return DeviceInfo(
        vendor="cpu",
        arch=probe.machine.lower(),
        type=probe.type,
        index=probe.index,
        name=f"{probe.machine} CPU",
        runtime="torch",
        rule="torch device type 'cpu' or 'meta'",
    )

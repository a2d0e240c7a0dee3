"""Kunlunxin XPU: poses as CUDA (older: ``xpu``) once its ``torch_xmlir`` is imported.

Source: FlagGems calls its device "cuda"; how it names itself is a single hint.
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import describe
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {"kunlunxin": {}}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type not in ("cuda", "xpu"):
        return None
    named = "kunlun" in probe.device_name().lower()
    if not named and "torch_xmlir" not in probe.modules:
        return None
    return describe(
        probe,
        "kunlunxin",
        "",
        runtime="XRE",
        confidence="low",
        rule="'kunlun' in the device name" if named else "torch_xmlir is imported",
    )

"""Iluvatar CoreX: poses as CUDA (10.2); its torch has a true ``torch.corex``.

Source: FlagGems vendor attribute table and two independent callers; the wheel tag '+corex' was
measured on torch 2.10.0+corex.4.5.0, whose ``torch.__version__`` is bare.
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import capability, describe, torch_build
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

ARCHS = {(7, 0): "ivcore10", (7, 1): "ivcore11"}

FLASHMLA_HUB_VENDORS = {"iluvatar": dict.fromkeys(ARCHS.values(), "")}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type != "cuda":
        return None
    if getattr(probe.torch, "corex", False):
        rule, confidence = "torch.corex", "high"
    elif "iluvatar" in probe.device_name().lower():
        rule, confidence = "'iluvatar' in the device name", "medium"
    elif "+corex" in torch_build(probe):
        rule, confidence = "'+corex' in the version of the torch distribution", "medium"
    else:
        return None
    return describe(
        probe,
        "iluvatar",
        ARCHS.get(capability(probe) or (0, 0), ""),
        runtime="CoreX",
        confidence=confidence,
        rule=rule,
    )

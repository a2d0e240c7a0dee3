"""MetaX through MACA: poses as CUDA (11.6, capability 8.0); its torch has ``torch.version.maca``.

Source: Mooncake's setup (hasattr(torch.version, "maca")), measured on a C550 by third parties;
FlagGems runtime/backend/_metax. mcPytorch 2.1 lacks the attribute: the device name or the tag of
the torch wheel tells.
"""

from __future__ import annotations

import re

from flashmla_hub.backends.devices._facts import describe, torch_build
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

ARCHS = {"5": "xcore1000", "6": "xcore1500"}  # C500, C550, C588; C600

FLASHMLA_HUB_VENDORS = {"metax": {"xcore1000": "c500 c550 c588", "xcore1500": "c600"}}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type != "cuda":
        return None
    maca = probe.version("maca")
    name = probe.device_name()
    if maca is not None:
        rule, confidence = "torch.version.maca", "high"
    elif "metax" in name.lower():
        rule, confidence = "'metax' in the device name", "medium"
    elif "+metax" in torch_build(probe):
        rule, confidence = "'+metax' in the version of the torch distribution", "low"
    else:
        return None
    model = re.search(r"\bC(\d)\d\d", name)
    return describe(
        probe,
        "metax",
        ARCHS.get(model[1], "") if model else "",
        runtime=f"MACA {maca or ''}".strip(),
        confidence=confidence,
        rule=rule,
    )

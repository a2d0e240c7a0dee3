"""Vendors whose torch has a device type of its own: the type is the positive sign.

Source: the vendors' torch extensions; FlagGems' vendor table for those marked medium. torch_xmlir
makes a Kunlunxin card appear as ``xpu``, so that type is Intel's only without it.
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import describe
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

# torch device type -> (vendor, runtime, confidence)
TYPES = {
    "npu": ("ascend", "CANN", "high"),
    "mlu": ("cambricon", "Neuware", "high"),
    "gcu": ("enflame", "TopsRider", "medium"),
    "xpu": ("intel", "Level Zero", "high"),
    "mps": ("apple", "Metal", "high"),
    "ptpu": ("sunrise", "", "medium"),
    "txda": ("tsingmicro", "", "medium"),
    "supa": ("biren", "BIRENSUPA", "medium"),
    "hpu": ("habana", "SynapseAI", "medium"),
    "aipu": ("aipu", "", "medium"),
}

FLASHMLA_HUB_VENDORS = {vendor: {"*": kind} for kind, (vendor, _, _) in TYPES.items()}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type not in TYPES:
        return None
    name = probe.device_name()
    if probe.type == "xpu" and ("torch_xmlir" in probe.modules or "kunlun" in name.lower()):
        return None
    vendor, runtime, confidence = TYPES[probe.type]
    arch = name.lower().replace(" ", "_") if vendor in ("ascend", "enflame") else ""
    return describe(
        probe,
        vendor,
        arch,
        runtime=runtime,
        confidence=confidence,
        rule=f"torch device type {probe.type!r}",
    )

"""AMD Instinct through ROCm: type ``cuda``, ``torch.version.hip``, and no sign of Hygon's DTK.

Source: FlagGems runtime/backend/__init__.py (gcnArchName), ROCm/aiter.
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import describe, gcn_arch, is_hygon
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {
    "amd": {
        "gfx90a": "mi200 mi210 mi250", "gfx942": "mi300 mi300x mi325x", "gfx950": "mi350x mi355x",
        "gfx*": "rocm",
    }
}  # fmt: skip


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    hip = probe.version("hip")
    if probe.type != "cuda" or hip is None or is_hygon(probe):
        return None
    return describe(
        probe,
        "amd",
        gcn_arch(probe),
        runtime=f"ROCm {hip}",
        rule="torch.version.hip, no torch.__hcu_version__, arch from gcnArchName",
    )

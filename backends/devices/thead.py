"""T-Head PPU (Zhenwu): poses as CUDA; only its device name tells.

Source: FlagGems and SGLang look for the environment variable PPU_SDK, which says what is
installed and not which device a tensor is on; the name is a single hint. Set
FLASHMLA_HUB_DEVICE=thead:ppu_15 where the name lacks it.
"""

from __future__ import annotations

import re

from flashmla_hub.backends.devices._facts import describe
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {"thead": {"ppu_10": "ppu", "ppu_15": ""}}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    if probe.type != "cuda" or not re.search(r"\bPPU|\bZW\d", probe.device_name()):
        return None
    return describe(
        probe,
        "thead",
        "",  # which capability is ppu_10 and which ppu_15 is not published
        runtime="PPU SDK",
        confidence="low",
        rule="'PPU' or 'ZW<number>' in the device name",
    )

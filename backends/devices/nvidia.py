"""NVIDIA GPUs, by their name.

MetaX, Iluvatar, T-Head and Kunlun devices also have type ``cuda`` and a ``torch.version.cuda``, so
the rule asks for the positive sign: the vendor's own name in the device name. Drivers before
R465 left "NVIDIA" out of it, hence the product lines.
"""

from __future__ import annotations

from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

PRODUCT_LINES = ("NVIDIA", "TESLA", "GEFORCE", "QUADRO", "TITAN")

FLASHMLA_HUB_VENDORS = {
    "nvidia": {
        "sm_50": "", "sm_52": "", "sm_53": "", "sm_60": "p100", "sm_61": "p40 p4", "sm_62": "",
        "sm_70": "v100", "sm_72": "xavier", "sm_75": "t4", "sm_80": "a100 a800 a30",
        "sm_86": "a10 a16 a40 rtx3090", "sm_87": "orin", "sm_89": "l4 l20 l40 l40s rtx4090",
        "sm_90": "h100 h200 h20 h800 gh200 hopper", "sm_100": "b100 b200 gb200 blackwell",
        "sm_101": "thor", "sm_103": "b300 gb300", "sm_110": "", "sm_120": "rtx5090 rtx6000",
        "sm_121": "gb10 spark",
    }
}  # fmt: skip


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    cuda = probe.version("cuda")
    if probe.type != "cuda" or cuda is None:
        return None
    name = probe.device_name()
    properties = probe.properties()
    if not name.upper().startswith(PRODUCT_LINES) or properties is None:
        return None
    return DeviceInfo(
        vendor="nvidia",
        arch=f"sm_{properties.major}{properties.minor}",
        type="cuda",
        index=probe.index,
        name=name,
        runtime=f"CUDA {cuda}",
        multiprocessors=getattr(properties, "multi_processor_count", 0),
        shared_memory=getattr(properties, "shared_memory_per_block_optin", 0),
        memory=getattr(properties, "total_memory", 0),
        rule="torch device type 'cuda', torch.version.cuda, name begins with an NVIDIA brand",
    )

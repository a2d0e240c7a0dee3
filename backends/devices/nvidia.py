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

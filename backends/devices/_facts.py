"""What several rules read in the same way. A reading that fails is an absent fact, never an error:
a vendor's runtime may be half installed."""

from __future__ import annotations

from typing import Any

from flashmla_hub.device import DeviceInfo, DeviceProbe

# gfx numbers that only Hygon ships; gfx906 is also AMD's (MI50)
HYGON_ONLY = frozenset({"gfx926", "gfx928", "gfx936", "gfx938"})


def describe(probe: DeviceProbe, vendor: str, arch: str, **facts: Any) -> DeviceInfo:
    """The DeviceInfo of a device whose vendor is settled, with what the runtime says of it."""
    properties = probe.properties()
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    return DeviceInfo(
        vendor=vendor,
        arch=arch.lower(),
        type=probe.type,
        index=probe.index,
        name=probe.device_name(),
        multiprocessors=getattr(properties, "multi_processor_count", 0),
        shared_memory=shared or getattr(properties, "shared_memory_per_block", 0),
        memory=getattr(properties, "total_memory", 0),
        **facts,
    )


def gcn_arch(probe: DeviceProbe) -> str:
    """``gfx942`` of a device whose runtime says ``gfx942:sramecc+:xnack-``; '' where unknown."""
    return str(getattr(probe.properties(), "gcnArchName", "")).partition(":")[0]


def capability(probe: DeviceProbe) -> tuple[int, int] | None:
    """(major, minor) of the device, None where the runtime does not say."""
    properties = probe.properties()
    major, minor = getattr(properties, "major", None), getattr(properties, "minor", None)
    return (major, minor) if isinstance(major, int) and isinstance(minor, int) else None


def torch_build(probe: DeviceProbe) -> str:
    """The version of the installed torch distribution, which keeps a vendor's tag that
    ``torch.__version__`` may have lost."""
    return (probe.dist_version("torch") or "").lower()


def is_hygon(probe: DeviceProbe) -> bool:
    """Hygon's DTK poses as HIP; AMD's rule needs to know it too, to stay exclusive."""
    if probe.type != "cuda":
        return False
    if hasattr(probe.torch, "__hcu_version__"):
        return True
    if probe.version("hip") is None:
        return False
    build = torch_build(probe)
    return gcn_arch(probe) in HYGON_ONLY or "das" in build.partition("+")[2] or "dtk" in build

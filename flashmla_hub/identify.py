"""Which device is this? Asks every identification plugin, refuses to guess between two."""

from __future__ import annotations

import threading

import torch

from flashmla_hub import config, registry
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.errors import DeviceConflictError, InvalidRequestError

_known: dict[tuple[str, int, int], DeviceInfo] = {}
_lock = threading.Lock()


def identify(device: torch.device | str) -> DeviceInfo:
    """The DeviceInfo of a torch device, under the simulation or override in force.

    A device that no rule knows is ``vendor="unknown"``, and its ``rule`` says what was seen.

    Raises:
        DeviceConflictError: two rules claim the device; the message names both.
    """
    device = torch.device(device)
    scope = config.scope()
    if scope.simulated is not None:
        return scope.simulated
    index = device.index if device.index is not None else _current_index(device.type)
    found = _identify(DeviceProbe(type=device.type, index=index))
    if scope.config.device is None:
        return found
    vendor, arch = parse_device(scope.config.device)
    return DeviceInfo(
        vendor=vendor,
        arch=arch or found.arch,
        type=found.type,
        index=index,
        name=found.name,
        runtime=found.runtime,
        multiprocessors=found.multiprocessors,
        shared_memory=found.shared_memory,
        memory=found.memory,
        rule="FLASHMLA_HUB_DEVICE",
    )


def parse_device(text: str) -> tuple[str, str]:
    """``vendor[:arch]`` -> (vendor, arch or '')."""
    vendor, _, arch = text.strip().lower().partition(":")
    if not vendor.replace("_", "").isalnum():
        raise InvalidRequestError("device", repr(text), "vendor[:arch], lower-case words")
    return vendor, arch


def simulated(vendor: str, arch: str = "") -> DeviceInfo:
    """The DeviceInfo that ``simulate_device(vendor, arch)`` puts in force."""
    vendor, arch = parse_device(f"{vendor}:{arch}" if arch else vendor)
    name = f"simulated {vendor} {arch}".strip()
    return DeviceInfo(vendor, arch, type="simulated", name=name, simulated=True, rule="simulated")


def devices() -> list[DeviceInfo]:
    """Every device of this process: the CPU, then the accelerators torch sees."""
    if config.scope().simulated is not None:
        return [identify("cpu")]
    found = [identify("cpu")]
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        kind = accelerator.type if accelerator is not None else "cpu"
        found += [identify(torch.device(kind, i)) for i in range(torch.accelerator.device_count())]
    return found


def _current_index(device_type: str) -> int:
    if device_type in ("cpu", "meta") or not torch.accelerator.is_available():
        return 0
    return int(torch.accelerator.current_device_index())


def _identify(probe: DeviceProbe) -> DeviceInfo:
    state = registry.state()
    key = (probe.type, probe.index, state.generation)
    found = _known.get(key)
    if found is None:
        found = ask_rules(probe)
        with _lock:
            for old in [k for k in _known if k[2] != state.generation]:
                del _known[old]
            _known[key] = found
    return found


def ask_rules(probe: DeviceProbe) -> DeviceInfo:
    """Put ``probe`` to every rule; uncached (tests fake the probe)."""
    claims: list[tuple[str, DeviceInfo]] = []
    for plugin, answer in registry.ask_identify(probe):
        if isinstance(answer, DeviceInfo):
            claims.append((plugin, answer))
        else:
            registry.quarantine_plugin(
                plugin, f"identify returned {type(answer).__name__}, expected DeviceInfo or None"
            )
    if len(claims) > 1:
        names = " and ".join(f"{plugin} ({info})" for plugin, info in claims)
        raise DeviceConflictError(
            f"device {probe.type}:{probe.index} is claimed by {names}; uninstall one, or set "
            "FLASHMLA_HUB_DISABLE_PLUGINS to the name of the wrong one"
        )
    if claims:
        return claims[0][1]
    versions = {k: probe.version(k) for k in ("cuda", "hip", "musa", "maca", "xpu")}
    seen = ", ".join(f"torch.version.{k}={v}" for k, v in versions.items() if v) or "nothing set"
    name = probe.device_name()
    return DeviceInfo(
        vendor="unknown",
        arch="",
        type=probe.type,
        index=probe.index,
        name=name,
        confidence="low",
        rule=f"no rule matched type={probe.type} name={name!r} ({seen})",
    )

"""Which device is this? Asks every identification plugin, refuses to guess between two."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import re
from typing import Any

import torch

from flashmla_hub import config, guard, registry
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.errors import DeviceConflictError, InvalidRequestError
from flashmla_hub.forks import Lock
from flashmla_hub.guard import Fault

_vendors: dict[int, dict[str, dict[str, str]]] = {}
_known: dict[tuple[str, int, int], DeviceInfo] = {}
_lock = Lock()


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
    vendor, arch = known_device(scope.config.device, "FLASHMLA_HUB_DEVICE")
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


def parse_device(text: str, argument: str = "device") -> tuple[str, str]:
    """``vendor[:arch]`` -> (vendor, arch or ''), whether or not anybody knows them."""
    vendor, _, arch = str(text).strip().lower().partition(":")
    if not re.fullmatch(r"\w+", vendor) or not re.fullmatch(r"[\w.+-]*", arch):
        raise InvalidRequestError(argument, repr(text), "vendor[:arch], lower-case words")
    return vendor, arch


def known_device(text: str, argument: str = "device") -> tuple[str, str]:
    """``vendor[:arch]`` -> (vendor, arch or '') that a rule or a backend knows.

    Raises:
        InvalidRequestError: nobody does; the message names ``argument``, what is known, and the
            nearest of it.
    """
    vendor, arch = parse_device(text, argument)
    known = vendors()
    names = {v: v for v in known}
    for v, archs in known.items():
        if vendor in known and v != vendor:
            continue
        for a, products in archs.items():
            label = v if "*" in a else f"{v}:{a}"
            names |= dict.fromkeys((*products.split(), a), label)
    if vendor not in known:
        hint = names.get(arch) or names.get(vendor)
        hint = f"; did you mean {hint}?" if hint else _hint(vendor, names)
        said = ", ".join(sorted(known.keys() - {"unknown"}))
        what = f"a vendor that a rule or a backend knows: {said}"
        raise InvalidRequestError(argument, repr(text), what + hint)
    archs = known[vendor]
    if arch and archs and not any(fnmatch.fnmatchcase(arch, a) for a in archs):
        hint = f"; did you mean {names[arch]}?" if arch in names else _hint(arch, names)
        what = f"{vendor} with one of: {', '.join(archs)}"
        raise InvalidRequestError(argument, repr(text), what + hint)
    return vendor, arch


def _hint(word: str, names: dict[str, str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""


def vendors() -> dict[str, dict[str, str]]:
    """The vendors that somebody knows -> {arch: words that its products go by}; patterns are those
    of ``fnmatch``, and no arch at all means any. From the rules' ``FLASHMLA_HUB_VENDORS`` and
    the devices that backends declare."""
    state = registry.state()
    found = _vendors.get(state.generation)
    if found is None:
        found = {"unknown": {}}  # what a device is that no rule knows
        for rule in state.identify:
            for vendor, archs in rule.vendors:
                found.setdefault(vendor, {}).update(archs)
        here = DeviceInfo("unknown", "", type="simulated", simulated=True)
        for entry in state.entries.values():
            with contextlib.suppress(Fault):
                for declaration in entry.declarations(here):
                    for kind in declaration.devices:
                        if kind.vendor != "*":
                            archs = found.setdefault(kind.vendor, {})
                            if archs:  # a rule lists what there is
                                archs |= {a: "" for a in kind.archs if a not in (*archs, "*")}
        _vendors.clear()
        _vendors[state.generation] = found
    return found


def simulated(vendor: str, arch: str = "") -> DeviceInfo:
    """The DeviceInfo that ``simulate_device(vendor, arch)`` puts in force.

    Raises:
        InvalidRequestError: no rule and no backend knows it.
    """
    vendor, arch = known_device(f"{vendor}:{arch}" if arch else vendor)
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
    claims: list[tuple[registry.Rule, DeviceInfo]] = []
    for rule, answer in registry.ask_identify(probe):
        try:
            claims.append((rule, _checked(answer)))
        except Fault as fault:
            registry.quarantine_rule(rule, fault.reason)
    ours = [claim for claim in claims if claim[0].builtin]
    if len(ours) == 1:
        for rule, info in claims:
            if not rule.builtin:
                registry.disbelieve(
                    rule,
                    f"its rule is not believed: it claims {probe.type}:{probe.index} as {info}, "
                    f"which the built-in rule {ours[0][0].plugin} knows as {ours[0][1]}",
                )
        claims = ours
    if len(claims) > 1:
        names = " and ".join(f"{rule.plugin} ({info})" for rule, info in claims)
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


def _checked(answer: object) -> DeviceInfo:
    """A rule's answer, rebuilt from fields of the types that a DeviceInfo has."""
    if not isinstance(answer, DeviceInfo):
        raise Fault(f"identify returned {guard.shown(answer)}, expected DeviceInfo or None")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(DeviceInfo):
        value = getattr(answer, field.name)
        kind = type(field.default) if field.default is not dataclasses.MISSING else str
        if type(value) is not kind:
            raise Fault(f"identify: {field.name} is {guard.shown(value)}, expected {kind.__name__}")
        values[field.name] = value
    return DeviceInfo(**values)

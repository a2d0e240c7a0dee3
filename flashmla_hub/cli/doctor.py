"""``flashmla-hub doctor``: everything a bug report needs, in one paste; what to do comes last."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from flashmla_hub import api, cache, config, registry
from flashmla_hub.asking import Entry
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import PluginError
from flashmla_hub.request import KernelKey
from flashmla_hub.version import CONTRACT_VERSION, __version__

HELP = "everything a bug report needs"

# distributions whose version explains most of what goes wrong
_PACKAGES = (
    "torch", "triton", "pluggy", "numpy", "transformers", "cuda-bindings", "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12", "vllm", "sglang", "pytest", "rich",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    for title, section in facts.items():
        if title == "advice" or not section:
            continue
        print(f"## {title}")
        for name, value in section.items():
            print(f"{name}: {value}")
        print()
    print("## advice")
    for line in facts["advice"]:
        print(f"- {line}")
    return 0


def collect() -> dict[str, Any]:
    """Versions, settings, devices, backends, whether the cache can be written; and what to do."""
    settings = config.current()
    devices, backends = api.devices(), api.backends()
    facts: dict[str, Any] = {
        "flashmla_hub": {
            "version": __version__,
            "contract": CONTRACT_VERSION,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processors": os.cpu_count(),
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch": {
            "build": torch.__version__,
            **{
                key: value
                for key in ("cuda", "hip", "xpu", "musa", "maca")
                if (value := getattr(torch.version, key, None))
            },
        },
        "settings": {
            **{f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)},
            "cache used": _unused(settings.cache_dir) or "yes",
        },
        "devices": {
            f"{d.type}:{d.index}": f"{d.vendor} {d.arch} {d.name!r} ({d.confidence}: {d.rule})"
            for d in devices
        },
        "backends": {b.name: f"{b.status}: {b.reason}{_origin(b)}" for b in backends},
        "notes": {
            f"{name} on {device}": "; ".join(notes)
            for device in devices
            for name, entry in registry.state().entries.items()
            if (notes := _notes(entry, device))
        },
    }
    facts["advice"] = advice(devices, backends, settings.cache_dir)
    return facts


def advice(
    devices: list[DeviceInfo], backends: list[api.BackendStatus], place: Path | None
) -> list[str]:
    """What to do next, most pressing first: never empty."""
    told = [
        f"{b.name} is quarantined: {b.reason}. Mend or uninstall it, or set "
        f"FLASHMLA_HUB_DISABLE_PLUGINS={b.name}"
        for b in backends
        if b.status == "quarantined"
    ]
    if unused := _unused(place):
        told.append(
            f"{unused}: kernels are compiled anew in every process. Set "
            "FLASHMLA_HUB_CACHE_DIR to a folder of yours"
        )
    accelerators = [d for d in devices if d.type != "cpu"]
    if not accelerators:
        told.append(
            "torch sees no accelerator: the torch backend is right here, and slow. If this machine "
            "has one, its driver or this build of torch does not show it"
        )
    for vendor in dict.fromkeys(d.vendor for d in accelerators):
        device = next(d for d in accelerators if d.vendor == vendor)
        if vendor == "unknown":
            told.append(
                f"no rule knows {device.type}:{device.index} ({device.rule}): name it with "
                "FLASHMLA_HUB_DEVICE=VENDOR:ARCH, or write a rule (docs/adding-a-backend.md)"
            )
            continue
        decision = api.explain(KernelKey(), device=device)
        told += [
            f"{c.backend} would serve {device} but for this: {'; '.join(c.reasons)}"
            for c in decision.candidates
            if c.reasons and "not installed" in c.reasons[0]
        ]
        served = decision.selected or "no backend"
        told.append(f"{served} serves the base shape on {device}: {decision.why}")
    told.append("other shapes: flashmla-hub explain --h-q 16; other devices: explain --device V:A")
    return told


def _notes(entry: Entry, device: DeviceInfo) -> tuple[str, ...]:
    try:
        return entry.notes(device)
    except PluginError as error:
        return (str(error),)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _origin(backend: api.BackendStatus) -> str:
    """The package behind a backend that is not the hub's own, with its version."""
    if backend.version in ("", "not installed") or backend.dist == "built-in":
        return ""
    return f" ({backend.dist} {backend.version})"


def _plain(value: Any) -> Any:
    """``none`` for what is not set, names as a list."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    return "none" if value is None else value


def _unused(place: Path | None) -> str:
    """Why the cache is not used, or not all of it; '' when it is."""
    refused = [cache.problem()]
    if place is not None:
        refused += [cache.problem(place / part) for part in ("hopper", "plugins", "tuning")]
        if not _writable(place):
            refused.append(f"{place} cannot be written")
    return "; ".join(dict.fromkeys(why for why in refused if why))


def _writable(place: Path) -> bool:
    """Whether the folder, or the one it would be made in, takes a file."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False

"""``flashmla-hub doctor``: everything a bug report needs, in one paste."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import torch

from flashmla_hub import api, config, registry
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
        print(f"## {title}")
        for name, value in section.items():
            print(f"{name}: {value}")
        print()
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """Versions, settings, devices, backends and whether the cache can be written."""
    settings = config.current()
    found = {
        f"{d.type}:{d.index}": f"{d.vendor} {d.arch} {d.name!r} ({d.confidence}: {d.rule})"
        for d in api.devices()
    }
    return {
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
            **{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)},
            "cache_dir writable": _writable(settings),
        },
        "devices": found,
        "backends": {
            b.name: f"{b.status}: {b.reason} ({b.dist} {b.version})".rstrip()
            for b in api.backends()
        },
        "notes": {
            f"{name} on {device}": "; ".join(notes)
            for device in api.devices()
            for name, backend in registry.state().backends.items()
            if (notes := backend.notes(device))
        },
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _writable(settings: config.Config) -> bool:
    place = settings.cache_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    return os.access(place, os.W_OK)

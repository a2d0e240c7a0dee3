"""Configs measured on this machine's card, and what to try. Imports no triton.

``flashmla-hub tune`` fills the file; ``bind`` prefers it to the shipped table, except for
batch-invariant kernels, whose bits depend on the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flashmla_hub.backends.triton.config import Config, config_for
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey
from flashmla_hub.tuning import ConfigFile, validated

# Tiles are powers of two, warps and stages what a compiler takes; a file may say anything.
_LIMITS = {
    "block_h": (1, 256),
    "block_n": (16, 512),
    "num_warps": (1, 32),
    "num_stages": (1, 16),
    "split_tail": (0, 1 << 20),
    "per_sm": (1, 32),
    "step": (1, 16),
}
_OPTIONS = frozenset({"matrix_instr_nonkdim", "waves_per_eu", "kpack"})


def _parse(given: Mapping[str, Any]) -> Config:
    options = tuple((str(name), value) for name, value in given["options"])
    for name, value in options:
        if name not in _OPTIONS or type(value) is not int or not 0 <= value <= 64:
            raise ValueError(f"options: {name!r:.40}={value!r:.40} is not known")
    found = validated(Config, {**given, "options": options}, _LIMITS)
    for name in ("block_h", "block_n", "num_warps"):
        value = getattr(found, name)
        if value & (value - 1):
            raise ValueError(f"{name} is {value}, expected a power of two")
    return found


FILE = ConfigFile("triton", 3, _parse)


def config(key: KernelKey, device: DeviceInfo) -> Config:
    """The measured Config of ``key`` on ``device``, else the shipped one."""
    found = None if key.batch_invariant else FILE.get(key.summary(), device)
    return found or config_for(key, device)


def keep(key: KernelKey, device: DeviceInfo, chosen: Config) -> None:
    FILE.keep(key.summary(), device, chosen)


def trials(key: KernelKey, device: DeviceInfo) -> dict[str, Config]:
    """The shipped Config and its neighbours, by label; some may not fit the device."""
    base = config_for(key, device)
    plain = replace(base, gluon=False, step=1)
    changes: tuple[dict[str, int], ...] = (
        {},
        {"num_stages": plain.num_stages + 1},
        {"num_stages": max(1, plain.num_stages - 1)},
        {"block_n": plain.block_n * 2, "num_stages": max(1, plain.num_stages - 1)},
        {"block_n": max(16, plain.block_n // 2), "num_stages": plain.num_stages + 1},
        {"num_warps": 4 if plain.num_warps == 8 else 8},
    )
    return {label(found): found for found in (base, *(replace(plain, **c) for c in changes))}


def label(found: Config) -> str:
    if found.gluon:
        return "gluon"
    return f"{found.block_h}x{found.block_n} w{found.num_warps} s{found.num_stages}"

"""Configs measured on this machine's card, and what to try. Imports no triton.

``flashmla-hub tune`` fills the file; ``bind`` prefers it to the shipped table, except for
batch-invariant kernels, whose bits depend on the config.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

from flashmla_hub import config as settings
from flashmla_hub import log
from flashmla_hub.backends.triton.config import Config, config_for
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

VERSION = 1


def path_for(device: DeviceInfo) -> Path:
    label = re.sub(r"[^a-z0-9_.-]+", "-", f"{device.vendor}-{device.arch}-{device.name}".lower())
    name = f"triton-{label.strip('-')}-v{VERSION}.json"
    return settings.current().cache_dir / "tuning" / name


def config(key: KernelKey, device: DeviceInfo) -> Config:
    """The measured Config of ``key`` on ``device``, else the shipped one."""
    if key.batch_invariant or device.simulated:
        return config_for(key, device)
    path = path_for(device)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return config_for(key, device)
    return _load(path, stamp).get(key.summary()) or config_for(key, device)


def keep(key: KernelKey, device: DeviceInfo, chosen: Config) -> None:
    """Record ``chosen``; the file is replaced whole, so that a reader never sees half of one."""
    path = path_for(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = dict(_load(path, path.stat().st_mtime_ns)) if path.exists() else {}
    known[key.summary()] = chosen
    table = {"version": VERSION, "configs": {name: asdict(c) for name, c in known.items()}}
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(table, file, indent=2)
    Path(name).replace(path)


def trials(key: KernelKey, device: DeviceInfo) -> dict[str, Config]:
    """The shipped Config and its neighbours, by label; some may not fit the device."""
    base = config_for(key, device)
    changes: tuple[dict[str, int], ...] = (
        {},
        {"num_stages": base.num_stages + 1},
        {"num_stages": max(1, base.num_stages - 1)},
        {"block_n": base.block_n * 2, "num_stages": max(1, base.num_stages - 1)},
        {"block_n": max(16, base.block_n // 2), "num_stages": base.num_stages + 1},
        {"num_warps": 4 if base.num_warps == 8 else 8},
        *([{"gluon": 0}, {"gluon": 3 - base.gluon}] if base.gluon else []),
    )
    return {label(found): found for found in (replace(base, **c) for c in changes)}


def label(found: Config) -> str:
    if found.gluon:
        return f"gluon {found.gluon}"
    return f"{found.block_h}x{found.block_n} w{found.num_warps} s{found.num_stages}"


@lru_cache(maxsize=16)
def _load(path: Path, stamp: int) -> dict[str, Config]:
    try:
        table = json.loads(path.read_text())
        if table["version"] != VERSION:
            raise ValueError(f"version {table['version']}, expected {VERSION}")
        return {
            name: Config(**{**fields, "options": tuple(map(tuple, fields["options"]))})
            for name, fields in table["configs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("tuned configs %s are ignored: %s; run `flashmla-hub tune` again", path, error)
        return {}

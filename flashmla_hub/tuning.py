"""This machine's tuning table: measured preferences that stand above the declared ranks.

``flashmla-hub tune`` writes it, one JSON file for each device, into the cache directory. Kernel
configurations are a backend's own business; this table only orders backends.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from flashmla_hub import config, log
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import ChoiceKey

VERSION = 1


def path_for(device: DeviceInfo) -> Path:
    """Where the table of this kind of device lies."""
    label = re.sub(r"[^a-z0-9_.-]+", "-", f"{device.vendor}-{device.arch}-{device.name}".lower())
    return config.current().cache_dir / "tuning" / f"{label.strip('-')}-v{VERSION}.json"


def preferred(choice: ChoiceKey, device: DeviceInfo) -> str | None:
    """The backend measured best for this choice, None where nothing was measured.

    Never consulted for batch-invariant requests (their choice may not depend on the batch) nor
    for simulated devices.
    """
    if choice.kernel.batch_invariant or device.simulated:
        return None
    path = path_for(device)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _load(path, stamp).get(str(choice))


@lru_cache(maxsize=16)
def _load(path: Path, stamp: int) -> dict[str, str]:
    try:
        table = json.loads(path.read_text())
        if table["version"] != VERSION:
            raise ValueError(f"version {table['version']}, expected {VERSION}")
        return {str(k): str(v) for k, v in table["preferred"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("tuning table %s is ignored: %s; run `flashmla-hub tune` again", path, error)
        return {}

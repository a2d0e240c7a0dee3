"""What ``flashmla-hub tune`` measured on this machine, in the cache directory.

One table for each kind of device orders the backends and stands above their declared ranks. Kernel
configurations are a backend's own business: it keeps those that won in a :class:`ConfigFile`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from flashmla_hub import config, log
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import ChoiceKey
from flashmla_hub.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

VERSION = 2


def _path(device: DeviceInfo, prefix: str, version: int) -> Path:
    words = f"{prefix}{device.vendor}-{device.arch}-{device.name}".lower()
    label = re.sub(r"[^a-z0-9_.-]+", "-", words).strip("-")
    return config.current().cache_dir / "tuning" / f"{label}-v{version}.json"


def path_for(device: DeviceInfo) -> Path:
    """Where the table of this kind of device lies."""
    return _path(device, "", VERSION)


def read_json(path: Path, version: int) -> dict[str, Any]:
    """A file that :func:`write_json` made.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or is of another version.
    """
    table: dict[str, Any] = json.loads(path.read_text())
    if table["version"] != version:
        raise ValueError(f"version {table['version']}, expected {version}")
    return table


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file whole, so that a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    Path(name).replace(path)


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
        table = read_json(path, VERSION)
        return {str(k): str(v) for k, v in table["preferred"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("tuning table %s is ignored: %s; run `flashmla-hub tune` again", path, error)
        return {}


class ConfigFile(Generic[C]):
    """The configurations of one backend that won on this machine, a file for each kind of device.

    ``parse`` makes a configuration, a dataclass, of the fields ``dataclasses.asdict`` gave.
    """

    def __init__(self, backend: str, version: int, parse: Callable[[Mapping[str, Any]], C]) -> None:
        self._backend = backend
        self._version = version
        self._parse = parse
        self._load = lru_cache(maxsize=16)(self._read)

    def path(self, device: DeviceInfo) -> Path:
        return _path(device, f"{self._backend}-", self._version)

    def get(self, name: str, device: DeviceInfo) -> C | None:
        """What was kept under ``name``; None where nothing was, and for simulated devices."""
        return None if device.simulated else self._known(device).get(name)

    def keep(self, name: str, device: DeviceInfo, chosen: C) -> None:
        known = {**self._known(device), name: chosen}
        made = {
            "device": f"{device.name} {device}", "runtime": device.runtime,
            "torch": torch.__version__, "flashmla_hub": __version__,
        }  # fmt: skip
        configs = {name: asdict(found) for name, found in known.items()}
        write_json(self.path(device), {"version": self._version, "made": made, "configs": configs})

    def _known(self, device: DeviceInfo) -> Mapping[str, C]:
        path = self.path(device)
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return {}
        return self._load(path, stamp)

    def read(self, path: Path) -> Mapping[str, C]:
        """The configurations in a file of this form, a shipped one for instance.

        Raises:
            OSError, ValueError, KeyError, TypeError, AttributeError: it is not of this form.
        """
        table = read_json(path, self._version)
        return {name: self._parse(fields) for name, fields in table["configs"].items()}

    def _read(self, path: Path, stamp: int) -> Mapping[str, C]:
        try:
            return self.read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "tuned configs %s are ignored: %s; run `flashmla-hub tune` again", path, error
            )
            return {}

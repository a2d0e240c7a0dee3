"""What ``flashmla-hub tune`` measured on this machine, in the cache directory.

One table for each kind of device orders the backends and stands above their declared ranks. Kernel
configurations are a backend's own business: it keeps those that won in a :class:`ConfigFile`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from flashmla_hub import cache, files, log
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import ChoiceKey
from flashmla_hub.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

VERSION = 2
MAX_ENTRIES = 4096  # of one file
MAX_BYTES = 4 * 2**20
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _path(device: DeviceInfo, prefix: str, version: int) -> Path | None:
    folder = cache.folder("tuning")
    words = f"{prefix}{device.vendor}-{device.arch}-{device.name}".lower()
    label = re.sub(r"[^a-z0-9_.-]+", "-", words).strip("-")[:150]
    return folder / f"{label}-v{version}.json" if folder is not None else None


def path_for(device: DeviceInfo) -> Path | None:
    """Where the table of this kind of device lies; None where there is no cache to use."""
    return _path(device, "", VERSION)


def read_json(path: Path | None, version: int) -> dict[str, Any]:
    """A file that :func:`write_json` made.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or is of another version.
    """
    if path is None:
        raise FileNotFoundError("there is no cache")
    table: dict[str, Any] = files.parse_json(files.read_regular(path, MAX_BYTES))
    if table["version"] != version:
        raise ValueError(f"version {table['version']!r:.40}, expected {version}")
    return table


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Replace the file whole, so that a reader never sees half of one.

    Raises:
        OSError: it cannot be written, or there is no cache to write to (None).
    """
    if path is None:
        raise OSError(f"nothing can be kept: {cache.problem()}")
    files.write_atomically(path, json.dumps(content, indent=2) + "\n")


def validated(kind: type[C], given: Mapping[str, Any], limits: Mapping[str, tuple[int, int]]) -> C:
    """``kind(**given)`` once every field is there, of the type of its default (or an int), and
    inside its ``limits``: a tuning file is data from outside, and kernels divide by it.

    Raises:
        ValueError, TypeError: naming the field.
    """
    for field in fields(kind):
        value = given[field.name]
        low, high = limits.get(field.name, (0, 0))
        if field.name in limits:
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{field.name} is {value!r:.40}, expected {low}..{high}")
        elif isinstance(field.default, bool) and type(value) is not bool:
            raise ValueError(f"{field.name} is {value!r:.40}, expected true or false")
    return kind(**given)


def preferred(choice: ChoiceKey, device: DeviceInfo) -> str | None:
    """The backend measured best for this choice, None where nothing was measured.

    Never consulted for batch-invariant requests (their choice may not depend on the batch) nor
    for simulated devices.
    """
    if choice.kernel.batch_invariant or device.simulated:
        return None
    path = path_for(device)
    stamp = _stamp(path)
    return _load(path, stamp).get(str(choice)) if path is not None and stamp else None


def _stamp(path: Path | None) -> int:
    """When the file was written; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns if path is not None else 0
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _load(path: Path, stamp: int) -> dict[str, str]:
    try:
        table = read_json(path, VERSION)
        found = {str(k): v for k, v in table["preferred"].items()}
        wrong = next((v for v in found.values() if not isinstance(v, str)), None)
        if wrong is not None or len(found) > MAX_ENTRIES:
            raise ValueError(f"{wrong!r:.40} is no backend" if wrong else "too many entries")
        return found
    except _UNREADABLE as error:
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

    def path(self, device: DeviceInfo) -> Path | None:
        return _path(device, f"{self._backend}-", self._version)

    def get(self, name: str, device: DeviceInfo) -> C | None:
        """What was kept under ``name``; None where nothing was, and for simulated devices."""
        return None if device.simulated else self._known(device).get(name)

    def keep(self, name: str, device: DeviceInfo, chosen: C) -> None:
        known = {**self._known(device), name: chosen}
        while len(known) > MAX_ENTRIES:
            del known[next(iter(known))]
        made = {
            "device": f"{device.name} {device}", "runtime": device.runtime,
            "torch": torch.__version__, "flashmla_hub": __version__,
        }  # fmt: skip
        configs = {name: asdict(found) for name, found in known.items()}
        write_json(self.path(device), {"version": self._version, "made": made, "configs": configs})

    def _known(self, device: DeviceInfo) -> Mapping[str, C]:
        path = self.path(device)
        stamp = _stamp(path)
        return self._load(path, stamp) if path is not None and stamp else {}

    def read(self, path: Path) -> Mapping[str, C]:
        """The configurations in a file of this form, a shipped one for instance.

        Raises:
            OSError, ValueError, KeyError, TypeError, AttributeError: it is not of this form.
        """
        table = read_json(path, self._version)
        configs = table["configs"]
        if len(configs) > MAX_ENTRIES:
            raise ValueError(f"{len(configs)} configurations, at most {MAX_ENTRIES}")
        return {str(name): self._parse(given) for name, given in configs.items()}

    def _read(self, path: Path, stamp: int) -> Mapping[str, C]:
        try:
            return self.read(path)
        except _UNREADABLE as error:
            log.warning(
                "tuned configs %s are ignored: %s; run `flashmla-hub tune` again", path, error
            )
            return {}

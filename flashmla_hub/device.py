"""What the hub knows of an accelerator, and what an identification plugin may look at.

The core names no vendor: rules live in plugins that implement the hook
``flashmla_hub_identify_device(probe)`` and are exclusive by themselves. The core asks all of
them and raises :class:`~flashmla_hub.errors.DeviceConflictError` when two claim one device.
"""

from __future__ import annotations

import html
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class DeviceInfo:
    """Facts about one device; hashable, comparable, printable.

    ``vendor`` and ``arch`` are lower-case words chosen by the identification plugin
    (for instance ``nvidia``/``sm_90``, ``amd``/``gfx942``, ``cpu``/``x86_64``).
    ``type`` is torch's device type, the one thing a bind must find on the tensor.
    ``multiprocessors``, ``shared_memory`` (bytes a block may use) and ``memory`` (bytes)
    are 0 where unknown. ``confidence``: ``high`` read in the vendor's own source,
    ``medium`` seen in several independent callers, ``low`` a single hint.
    """

    vendor: str
    arch: str
    type: str
    index: int = 0
    name: str = ""
    runtime: str = ""
    multiprocessors: int = 0
    shared_memory: int = 0
    memory: int = 0
    simulated: bool = False
    confidence: str = "high"
    rule: str = ""

    def __str__(self) -> str:
        label = f"{self.vendor}:{self.arch}" if self.arch else self.vendor
        return f"{label} (simulated)" if self.simulated else label

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in vars(self).items()
            if value not in ("", 0, False)
        )
        return f"<b>{html.escape(str(self))}</b><table>{rows}</table>"


def _dist_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class DeviceProbe:
    """What a rule may read. Rules use this object only, so that tests can fake exactly that.

    Never import a vendor library from a rule: look into ``torch``, ``modules`` (what the
    process has imported already) and distribution metadata. New fields may be added.
    """

    type: str
    index: int = 0
    torch: Any = field(default=torch, compare=False)
    modules: Mapping[str, Any] = field(default_factory=lambda: sys.modules, compare=False)
    dist_version: Callable[[str], str | None] = field(default=_dist_version, compare=False)
    machine: str = field(default_factory=platform.machine)

    def device_name(self) -> str:
        """The runtime's name for the device, '' where it does not say."""
        try:
            return str(getattr(self.torch, self.type).get_device_name(self.index))
        except Exception:  # a probe must not fail because a vendor's runtime is half installed
            return ""

    def properties(self) -> Any:
        """``torch.<type>.get_device_properties(index)``, None where there is none."""
        try:
            return getattr(self.torch, self.type).get_device_properties(self.index)
        except Exception:
            return None

    def version(self, attribute: str) -> str | None:
        """``torch.version.<attribute>`` as a string, None where it is absent or empty."""
        value = getattr(getattr(self.torch, "version", None), attribute, None)
        return str(value) if value else None


def capturing(device_type: str) -> bool:
    """Whether the current stream of that kind of device is being captured into a graph."""
    ask = getattr(getattr(torch, device_type, None), "is_current_stream_capturing", None)
    return bool(ask is not None and ask())

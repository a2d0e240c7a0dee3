"""The plugin contract, carried by pluggy.

An entry point of group ``flashmla_hub.backends`` names a module with
``FLASHMLA_HUB_PROTOCOL = 2`` and one or both hooks, decorated with ``hookimpl``. Hooks serve
discovery only; the hot path is a dict. Hook arguments are frozen dataclasses that only grow.

Protocol 1 differs in one thing: ``BoundKernel.run`` took its arguments by position. Its plugins are
served through ``backend.PositionalKernel``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pluggy

from flashmla_hub.backend import Backend
from flashmla_hub.device import DeviceInfo, DeviceProbe

PROJECT = "flashmla_hub"
ENTRY_POINT_GROUP = "flashmla_hub.backends"
PROTOCOL_MIN = 1
PROTOCOL_CURRENT = 2

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class BackendQuery:
    """The argument of ``flashmla_hub_backends``; fields may be added."""

    protocol: int = PROTOCOL_CURRENT


class HookSpecs:
    """The hooks a plugin may implement."""

    @hookspec
    def flashmla_hub_identify_device(self, probe: DeviceProbe) -> DeviceInfo | None:
        """The device behind ``probe`` if this plugin's rule knows it, else None.

        Rules are exclusive by themselves: test the positive sign, import nothing.
        """
        ...

    @hookspec
    def flashmla_hub_backends(self, query: BackendQuery) -> Iterable[Backend]:
        """The backends of this plugin; cheap, imports no vendor library."""
        return ()

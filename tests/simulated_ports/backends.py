"""The adapters as backends that may run on a simulated device.

The classes are the shipped ones; the subclass adds a name of its own and the flag. A simulated
device's tensors are on the CPU, where the fakes compute.
"""

from __future__ import annotations

from flashmla_hub.backend import Backend
from flashmla_hub.backends.amd.plugin import Aiter
from flashmla_hub.backends.ascend.plugin import Ascend
from flashmla_hub.backends.flaggems.plugin import FlagGems, FlagGemsSparse
from flashmla_hub.backends.hygon.plugin import Hygon
from flashmla_hub.backends.iluvatar.plugin import Iluvatar, IluvatarFlashMLA
from flashmla_hub.backends.intellifusion.plugin import Intellifusion
from flashmla_hub.backends.metax.plugin import MetaX, MetaXSparse
from flashmla_hub.backends.moore_threads.plugin import Mate, MTFlashMLA
from flashmla_hub.backends.thead.plugin import THead
from flashmla_hub.hookspecs import BackendQuery, hookimpl

FLASHMLA_HUB_PROTOCOL = 2

ADAPTERS = (
    MetaX, MetaXSparse, MTFlashMLA, Mate, Hygon, Iluvatar, IluvatarFlashMLA, Aiter, THead,
    FlagGems, FlagGemsSparse, Intellifusion, Ascend,
)  # fmt: skip


def simulated(adapter: type[Backend]) -> Backend:
    """An instance of ``adapter`` named ``simulated_<name>`` that may run on simulated devices."""
    name = f"simulated_{adapter.name}"
    made = type(adapter.__name__, (adapter,), {"name": name, "runs_simulated": True})
    return made()


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> tuple[Backend, ...]:
    return tuple(map(simulated, ADAPTERS))

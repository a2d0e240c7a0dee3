"""The built-in backends and device rules, listed once: setup.py makes the entry points from this
table, and an uninstalled checkout uses it as it is. Imports none of them.

Importing this package makes Python set ``flashmla_hub.backends`` to it, where the public function
of that name was: so the package can be called, and is that function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

BUILTINS: dict[str, str] = {
    "device_cpu": "flashmla_hub.backends.devices.cpu",
    "device_nvidia": "flashmla_hub.backends.devices.nvidia",
    "device_amd": "flashmla_hub.backends.devices.amd",
    "device_hygon": "flashmla_hub.backends.devices.hygon",
    "device_iluvatar": "flashmla_hub.backends.devices.iluvatar",
    "device_kunlunxin": "flashmla_hub.backends.devices.kunlunxin",
    "device_metax": "flashmla_hub.backends.devices.metax",
    "device_moore_threads": "flashmla_hub.backends.devices.moore_threads",
    "device_own_types": "flashmla_hub.backends.devices.own_types",
    "device_thead": "flashmla_hub.backends.devices.thead",
    "amd": "flashmla_hub.backends.amd.plugin",
    "ascend": "flashmla_hub.backends.ascend.plugin",
    "flaggems": "flashmla_hub.backends.flaggems.plugin",
    "hygon": "flashmla_hub.backends.hygon.plugin",
    "iluvatar": "flashmla_hub.backends.iluvatar.plugin",
    "intellifusion": "flashmla_hub.backends.intellifusion.plugin",
    "metax": "flashmla_hub.backends.metax.plugin",
    "moore_threads": "flashmla_hub.backends.moore_threads.plugin",
    "thead": "flashmla_hub.backends.thead.plugin",
    "fa3": "flashmla_hub.backends.fa3.plugin",
    "flashinfer": "flashmla_hub.backends.flashinfer.plugin",
    "hopper": "flashmla_hub.backends.hopper.plugin",
    "upstream": "flashmla_hub.backends.upstream.plugin",
    "torch": "flashmla_hub.backends.torch_ref.plugin",
    "triton": "flashmla_hub.backends.triton.plugin",
}


class _Package(ModuleType):
    def __call__(self) -> list[Any]:
        from flashmla_hub import api

        return api.backends()


sys.modules[__name__].__class__ = _Package

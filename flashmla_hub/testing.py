"""For tests and for the conformance suite: add a backend for a while, open the core's gate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from flashmla_hub import api, registry
from flashmla_hub.asking import Entry
from flashmla_hub.backend import Backend, BoundKernel
from flashmla_hub.device import DeviceInfo
from flashmla_hub.guard import Fault
from flashmla_hub.request import KernelKey, check_key

__all__ = ["bind_unchecked", "registered"]


def registered(thing: Backend | Any, name: str = "test") -> AbstractContextManager[Any]:
    """``with registered(MyBackend()):`` - a backend, or a plugin object with hooks, for the
    duration. It is seen by every thread.

    Raises:
        PluginError: what would quarantine an installed plugin.
    """
    return registry.registered(thing, name)


def bind_unchecked(
    backend: str | Backend,
    key: KernelKey,
    device: DeviceInfo | torch.device | str | None = None,
) -> BoundKernel:
    """The backend's own kernel for ``key``, past the core's gate and without its rewrites.

    A backend must refuse by itself what it does not claim (contract C5.2); this is how the
    conformance suite puts it to the test. Nothing is cached.
    """
    check_key(key)
    entry = registry.entry(backend) if isinstance(backend, str) else Entry("", backend, "")
    try:
        return entry.bind(key, api.resolve_device(device))
    except Fault as fault:  # the suite wants to see what was raised
        raise fault.__cause__ or fault from None

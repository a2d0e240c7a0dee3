"""Which metadata function a Hygon wheel means its ``flash_mla_with_kvcache`` to be called with.

Older wheels: ``get_mla_metadata`` returns tensors. Newer: it is gone or returns an object, and
``get_mla_decoding_metadata_dense_fp8`` (whatever its name says, callers use it for bf16) returns
the tensors that the call still wants.
"""

from __future__ import annotations

import inspect
from types import ModuleType

from flashmla_hub.backends._ports.flash_mla import Metadata
from flashmla_hub.errors import NotSupportedError


def metadata_of(module: ModuleType) -> Metadata:
    """The metadata function whose results fit the module's call.

    Raises:
        NotSupportedError: neither function fits; names what the wheel offers.
    """
    plain = getattr(module, "get_mla_metadata", None)
    newer = getattr(module, "get_mla_decoding_metadata_dense_fp8", None)
    wants_object = "SchedMeta" in _annotation(module.flash_mla_with_kvcache)
    gives_object = plain is not None and _takes_nothing(plain)
    if plain is not None and gives_object == wants_object:
        return plain
    if newer is not None and not wants_object:
        return newer
    offered = sorted(name for name in vars(module) if "metadata" in name)
    raise NotSupportedError(
        "hygon",
        "metadata function",
        ", ".join(offered) or "none",
        "get_mla_metadata or get_mla_decoding_metadata_dense_fp8 that fits "
        "flash_mla_with_kvcache's tile_scheduler_metadata; tell us your wheel's version",
    )


def _takes_nothing(function: object) -> bool:
    """True for the third generation, whose metadata needs no argument and is an object."""
    try:
        inspect.signature(function).bind()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _annotation(function: object) -> str:
    try:
        parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    found = parameters.get("tile_scheduler_metadata")
    return "" if found is None else str(found.annotation)

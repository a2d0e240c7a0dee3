"""vLLM's FlashMLA functions, as its DeepSeek-V4 layers call them, through the hub.

V4's layers reach no attention backend: they call ``flash_mla_with_kvcache`` and
``flash_mla_sparse_fwd`` of ``vllm.v1.attention.ops.flashmla``, most by a name bound at import. So
the functions are replaced where they live and wherever a module has bound them already.

A call that no backend of the hub takes, or one with an argument that the hub refuses, goes to
vLLM's own function, as before; one line of the log says why. Opt-in, see plugin.py.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flashmla_hub as hub
from flashmla_hub import log
from flashmla_hub.errors import NoBackendError, NotSupportedError
from flashmla_hub.metadata import SchedMeta

MODULE = "vllm.v1.attention.ops.flashmla"
NAMES = ("flash_mla_with_kvcache", "flash_mla_sparse_fwd")


def install(module: ModuleType) -> tuple[str, ...]:
    """Put the hub in front of ``module``'s two functions; the modules that hold them now, by name.

    A second call changes nothing.
    """
    changed = []
    for name in NAMES:
        original = getattr(module, name)
        if hasattr(original, "flashmla_hub_original"):
            continue
        hooked = _in_front(name, original)
        for holder in list(sys.modules.values()):
            if getattr(holder, "__name__", "").startswith("vllm.") and (
                vars(holder).get(name) is original
            ):
                setattr(holder, name, hooked)
                changed.append(f"{holder.__name__}.{name}")
    return tuple(changed)


def uninstall() -> None:
    """Give every module its own function back."""
    for holder in list(sys.modules.values()):
        if getattr(holder, "__name__", "").startswith("vllm."):
            for name in NAMES:
                original = getattr(vars(holder).get(name), "flashmla_hub_original", None)
                if original is not None:
                    setattr(holder, name, original)


def _in_front(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    ours = getattr(hub, name)
    refused: set[str] = set()

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(kwargs)
        if not isinstance(given.get("tile_scheduler_metadata"), SchedMeta):
            given.pop("tile_scheduler_metadata", None)  # FlashMLA's own, of no use here
        try:
            return ours(*args, **given)
        except (NoBackendError, NotSupportedError) as error:
            # both are raised before a launch: nothing was written
            reason = str(error).splitlines()[0]
            if reason not in refused:
                refused.add(reason)
                log.warning(f"vLLM's own {name} serves a call: {reason}")
            return original(*args, **kwargs)

    call.flashmla_hub_original = original  # type: ignore[attr-defined]
    return call

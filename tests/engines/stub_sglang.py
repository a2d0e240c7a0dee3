"""The part of SGLang 0.5.23 that the plug-in touches: the hook registry and the module it hooks.

The registry wraps, sorts and patches stale imports as SGLang's does. ``installed(real=True)`` uses
SGLang's own registry instead, the one file of it that needs nothing else.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

INTERFACE = "sglang.kernels.ops.attention.flash_mla_interface"
REGISTRY = "sglang.srt.plugins.hook_registry"


class HookType(enum.Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


def _wrap(original: Callable[..., Any], hook: Callable[..., Any], kind: HookType) -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kind is HookType.AROUND:
            return hook(original, *args, **kwargs)
        return hook(*args, **kwargs)

    wrapper.__wrapped__ = original
    return wrapper


def _make_registry() -> type:
    class HookRegistry:
        _hooks: ClassVar[dict[str, list[tuple[HookType, Any, Any]]]] = defaultdict(list)
        _patched: ClassVar[set[str]] = set()

        @classmethod
        def register(cls, target: str, hook: Any, hook_type: HookType = HookType.AFTER) -> None:
            cls._hooks[target].append((hook_type, hook, None))

        @classmethod
        def apply_hooks(cls) -> None:
            for target, hooks in cls._hooks.items():
                if target in cls._patched:
                    continue
                owner, name = target.rsplit(".", 1)
                module = importlib.import_module(owner)
                original = wrapped = getattr(module, name)
                for kind, hook, _ in sorted(hooks, key=lambda h: h[0] is not HookType.REPLACE):
                    wrapped = _wrap(wrapped, hook, kind)
                for other in list(sys.modules.values()):  # stale `from ... import` bindings
                    for key, value in list(vars(other).items()) if other else ():
                        if value is original:
                            setattr(other, key, wrapped)
                cls._patched.add(target)

    return HookRegistry


class Original:
    """SGLang's own two functions, recording what reached them."""

    def __init__(self) -> None:
        self.metadata: list[tuple[Any, ...]] = []
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def module(self) -> ModuleType:
        interface = ModuleType(INTERFACE)

        def get_mla_metadata(
            cache_seqlens=None,
            num_q_tokens_per_head_k=None,
            num_heads_k=None,
            num_heads_q=None,
            is_fp8_kvcache=False,
            topk=None,
        ):
            self.metadata.append((cache_seqlens, is_fp8_kvcache, topk))
            return "original metadata", None

        def flash_mla_with_kvcache(*args, **kwargs):
            self.calls.append((args, kwargs))
            return "original out", "original lse"

        interface.get_mla_metadata = get_mla_metadata
        interface.flash_mla_with_kvcache = flash_mla_with_kvcache
        return interface


def real_registry() -> Path | None:
    """SGLang's hook_registry.py, None where SGLang is not installed."""
    spec = importlib.util.find_spec("sglang")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder, "srt", "plugins", "hook_registry.py")).is_file():
            return path
    return None


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(REGISTRY, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def installed(real: bool = False) -> Iterator[Original]:
    """``import sglang`` gives the stub for the duration."""
    path = real_registry() if real else None
    saved = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "sglang"}
    for name in saved:
        del sys.modules[name]
    original = Original()
    if path is not None:
        registry = _load(path)
    else:
        registry = ModuleType(REGISTRY)
        registry.HookRegistry, registry.HookType = _make_registry(), HookType
    for name in (
        "sglang",
        "sglang.srt",
        "sglang.srt.plugins",
        "sglang.kernels",
        "sglang.kernels.ops",
        "sglang.kernels.ops.attention",
    ):
        sys.modules[name] = ModuleType(name)
    sys.modules[REGISTRY] = registry
    sys.modules[INTERFACE] = original.module()
    try:
        yield original
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "sglang"]:
            del sys.modules[name]
        sys.modules.update(saved)

"""``import flash_mla`` resolves to the hub, in code written against FlashMLA.

    import flashmla_hub.drop_in
    flashmla_hub.drop_in.install()
    import flash_mla                      # the hub

The stand-in offers every name that a generation of FlashMLA has published. What the hub lacks
raises NotSupportedError when it is called, not ImportError when it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from flashmla_hub import foreign
from flashmla_hub.decode import flash_mla_with_kvcache
from flashmla_hub.errors import FlashMLAHubError, NotSupportedError
from flashmla_hub.metadata import SchedMeta, get_mla_metadata
from flashmla_hub.prefill import flash_mla_sparse_fwd
from flashmla_hub.version import __version__

NAME = "flash_mla"
INTERFACE = f"{NAME}.flash_mla_interface"

_OFFERED: dict[str, Any] = {
    "flash_mla_with_kvcache": flash_mla_with_kvcache,
    "flash_mla_sparse_fwd": flash_mla_sparse_fwd,
    "get_mla_metadata": get_mla_metadata,
    "FlashMLASchedMeta": SchedMeta,
}
# published, and not what the hub is for: dense prefill and training, other caches
_LACKING = (
    "flash_attn_varlen_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_mla_with_kvcache_fp8",
    "get_mla_metadata_dense_fp8",
    "get_mla_decoding_metadata_dense_fp8",
    "flash_mla_sparse_fwd_with_indexer",
)

_lock = threading.RLock()
_finder: _Finder | None = None


class DropInConflictError(FlashMLAHubError, ImportError):
    """A real ``flash_mla`` is imported already: code may hold its functions."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers to ``flash_mla`` and ``flash_mla.flash_mla_interface`` only."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in (NAME, INTERFACE):
            return None
        return importlib.machinery.ModuleSpec(
            name, self, origin="flashmla_hub.drop_in", is_package=name == NAME
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Stand-in for FlashMLA: the functions of flashmla_hub."
        setattr(module, foreign.DROP_IN_MARK, True)
        names = {**_OFFERED, **{name: _lacking(name) for name in _LACKING}}
        names["has_legacy"] = _has_legacy
        vars(module).update(names)
        vars(module).update(__version__=__version__, __all__=sorted(names))


setattr(_Finder, foreign.DROP_IN_MARK, True)


def install() -> None:
    """Let ``import flash_mla`` mean the hub, from now on. Doing it twice changes nothing.

    Raises:
        DropInConflictError: a real ``flash_mla`` is imported already.
    """
    global _finder
    with _lock:
        present = sys.modules.get(NAME)
        if present is not None and not getattr(present, foreign.DROP_IN_MARK, False):
            raise DropInConflictError(
                f"{NAME} is imported already, from {getattr(present, '__file__', 'somewhere')}; "
                "expected: not yet. Call flashmla_hub.drop_in.install() before the first "
                f"`import {NAME}`"
            )
        if _finder is None:
            _finder = _Finder()
            sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Let ``import flash_mla`` mean again what is installed under that name."""
    global _finder
    with _lock:
        if _finder is not None:
            sys.meta_path.remove(_finder)
            _finder = None
        for name in (NAME, INTERFACE):
            if getattr(sys.modules.get(name), foreign.DROP_IN_MARK, False):
                del sys.modules[name]


def _lacking(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotSupportedError("flashmla_hub", name, "called", ", ".join(sorted(_OFFERED)))

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"FlashMLA's {name}, which the hub does not offer: raises NotSupportedError."
    return refuse


def _has_legacy() -> bool:
    """Dense decode on Hopper is there, as in packages that kept it."""
    return True

"""The entry point (group ``vllm.general_plugins``).

vLLM calls ``register`` in every process, perhaps twice; it touches no device and imports no
kernel. Class paths are strings: vLLM imports them when the backend is chosen.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from flashmla_hub import config, log

NAME = "FLASHMLA_HUB"
BACKEND = "flashmla_hub.engines.vllm.backend.HubMLABackend"
CPU_BACKEND = "flashmla_hub.engines.vllm.cpu.HubCPUMLABackend"
SPARSE_BACKEND = "flashmla_hub.engines.vllm.sparse.HubSparseMLABackend"
# Names of FLASHMLA_HUB_ENGINES: each replaces something of vLLM's own under vLLM's own name.
CPU_OPT_IN = "vllm-cpu"
SPARSE_OPT_IN = "vllm-sparse"  # the backend FLASHMLA_SPARSE
FUNCTIONS_OPT_IN = "vllm-functions"  # the functions that DeepSeek-V4 layers call


def register() -> None:
    """Make the hub's backend known to vLLM; silent where vLLM is absent or older than 0.14."""
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError:
        return
    if not hasattr(AttentionBackendEnum, "register"):
        # vLLM 0.14 to 0.31 accept a new name without an error and never find it again.
        register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    elif NAME not in AttentionBackendEnum.__members__:
        register_backend(NAME, BACKEND)
    engines = config.current().engines
    if CPU_OPT_IN in engines:
        _override(AttentionBackendEnum, register_backend, "CPU_MLA", CPU_BACKEND, "0.28")
    if SPARSE_OPT_IN in engines:
        _override(AttentionBackendEnum, register_backend, "FLASHMLA_SPARSE", SPARSE_BACKEND, "0.33")
    if FUNCTIONS_OPT_IN in engines:
        _take_functions()


def _override(
    backends: Any, register_backend: Callable[..., Any], name: str, path: str, needs: str
) -> None:
    """Take the place of a backend of vLLM's under its own name: vLLM's CPU platform knows no other
    than CPU_MLA, and the cache dtype of sparse layers hangs on the name FLASHMLA_SPARSE."""
    if name not in backends.__members__ or not _new_enough(needs):
        log.warning(f"vLLM {needs} or later is needed for the hub in place of {name}; not used")
        return
    register_backend(backends[name], path)


def _take_functions() -> None:
    from flashmla_hub.engines.vllm import functions

    try:
        module = importlib.import_module(functions.MODULE)
    except ImportError:
        module = None
    if module is None or not all(hasattr(module, name) for name in functions.NAMES):
        log.warning(f"this vLLM has no {functions.MODULE} (0.33 or later needed); not used")
        return
    functions.install(module)


def _new_enough(needs: str) -> bool:
    """Whether the installed vLLM is ``needs`` or later; a version that does not say so counts."""
    try:
        version = importlib.metadata.version("vllm")
        have = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return True
    return have >= tuple(int(part) for part in needs.split("."))

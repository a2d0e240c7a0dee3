"""The entry point (group ``vllm.general_plugins``).

vLLM calls ``register`` in every process, perhaps twice; it touches no device and imports no
kernel. Class paths are strings: vLLM imports them when the backend is chosen.
"""

from __future__ import annotations

from flashmla_hub import config, log

NAME = "FLASHMLA_HUB"
BACKEND = "flashmla_hub.engines.vllm.backend.HubMLABackend"
CPU_BACKEND = "flashmla_hub.engines.vllm.cpu.HubCPUMLABackend"
CPU_OPT_IN = "vllm-cpu"  # a name of FLASHMLA_HUB_ENGINES


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
    if CPU_OPT_IN in config.current().engines:
        _override_cpu(AttentionBackendEnum, register_backend)


def _override_cpu(backends: type, register_backend: object) -> None:
    """vLLM's CPU platform knows no other name than CPU_MLA, so the hub takes its place there."""
    if "CPU_MLA" not in backends.__members__:  # type: ignore[attr-defined]
        log.warning("this vLLM has no CPU_MLA backend (0.28 or later needed); CPU form not used")
        return
    register_backend(backends.CPU_MLA, CPU_BACKEND)  # type: ignore[attr-defined, operator]

"""vLLM: ``--attention-backend FLASHMLA_HUB`` (``CUSTOM`` before vLLM 0.32). See docs/engines.md."""

from flashmla_hub.engines.vllm.plugin import register as register

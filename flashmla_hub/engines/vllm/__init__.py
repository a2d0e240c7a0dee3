"""vLLM: ``--attention-backend FLASHMLA_HUB`` (``CUSTOM`` before vLLM 0.32). See docs/engines.md."""

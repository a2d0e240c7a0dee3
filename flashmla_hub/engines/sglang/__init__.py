"""SGLang: the hub behind ``--attention-backend flashmla``. See docs/engines.md."""

"""FlashAttention-3 as a backend for MLA decode."""

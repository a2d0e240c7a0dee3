"""FlashInfer's paged MLA attention as a backend."""

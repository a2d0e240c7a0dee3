"""The benchmark behind ``flashmla-hub bench``: every available backend side by side in one run."""

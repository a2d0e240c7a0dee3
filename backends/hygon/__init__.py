"""Hygon DCU: MLAttention."""

"""FlagGems' Triton kernels, a fallback on several vendors' devices."""

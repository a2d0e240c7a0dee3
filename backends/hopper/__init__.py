"""The hub's own CUDA backend for Hopper (sm_90a): sources in csrc/, compiled at first use."""

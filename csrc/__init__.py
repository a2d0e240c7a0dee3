"""The CUDA sources, shipped as data: they are compiled at first use or ahead of time."""

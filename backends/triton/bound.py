"""From a KernelKey to the kernel that serves it."""

from __future__ import annotations

import contextlib

import torch

from flashmla_hub.backends.triton.config import Config, takes_tiles
from flashmla_hub.backends.triton.dense_bound import DenseKernel
from flashmla_hub.backends.triton.sparse_ops import (
    PagedFp8Kernel,
    SparseDecodeKernel,
    SparsePrefillKernel,
)
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

Kernel = DenseKernel | PagedFp8Kernel | SparseDecodeKernel | SparsePrefillKernel

_KERNELS: dict[str, type[Kernel]] = {
    DENSE_DECODE: DenseKernel,
    SPARSE_DECODE: SparseDecodeKernel,
    SPARSE_PREFILL: SparsePrefillKernel,
}


def kernel_for(key: KernelKey, device: DeviceInfo, config: Config) -> Kernel:
    """The kernel of ``key``; nothing is compiled yet."""
    if key.op == DENSE_DECODE and not takes_tiles(key):
        return PagedFp8Kernel(key, device, config)
    return _KERNELS[key.op](key, device, config)


def bind(key: KernelKey, device: DeviceInfo, config: Config) -> Kernel:
    """``kernel_for``, compiled and loaded on ``device``."""
    kernel = kernel_for(key, device, config)
    on = torch.cuda.device(device.index) if device.type == "cuda" else contextlib.nullcontext()
    with on:
        kernel.compile()
    return kernel

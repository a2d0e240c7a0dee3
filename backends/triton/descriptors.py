"""Hopper TMA descriptors for Gluon, kept by address: making one costs more than a launch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

SWIZZLED = gl.NVMMASharedLayout(128, 16, rank=2)


class Address:
    """What a descriptor asks of its tensor, without keeping the memory alive."""

    __slots__ = ("_address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self._address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self._address


@functools.lru_cache(maxsize=512)
def gluon_descriptor(
    address: int, dtype: torch.dtype, rows: int, cols: int, stride: int, block: tuple[int, int]
) -> Any:
    """Blocks of ``block`` 16-bit values of a (rows, cols) array with ``stride`` values a row."""
    base = Address(address, dtype)
    return TensorDescriptor(base, [rows, cols], [stride, 1], list(block), SWIZZLED)

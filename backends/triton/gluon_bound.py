"""The Hopper Gluon form on the host: where the installed Triton has what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backends.triton.launch import Descriptor, Launcher
from flashmla_hub.request import KernelKey

HALF, NARROW = (64, 256), (64, 64)
MAX_ROWS = 2**31 - 1


def gluon_kernel() -> Any | None:
    """The Gluon kernel, None where this Triton's Gluon (experimental) lacks a name it uses."""
    try:
        from flashmla_hub.backends.triton import descriptors  # noqa: F401
        from flashmla_hub.backends.triton.hopper_gluon import gluon_dense_kernel
    except (ImportError, AttributeError):
        return None
    return gluon_dense_kernel


def launcher(fn: Any, constants: Mapping[str, Any]) -> Launcher:
    # four warps: the second warpgroup is a partition of its own
    return Launcher(fn, constants, {"num_warps": 4, "launch_pdl": True})


def argument_types(dtype: torch.dtype) -> tuple[Any, ...]:
    f, i = torch.float32, torch.int32
    half, narrow = Descriptor(dtype, HALF), Descriptor(dtype, NARROW)
    return (dtype, dtype, half, narrow, i, i, dtype, f, f, 1.0, *[1] * 19)


def pool_rows(kv: Tensor) -> int | None:
    """Rows from one page to the next where the pool is one array of token rows, else None."""
    page, token = kv.stride(0), kv.stride(1)
    if kv.shape[0] == 0 or page % token or token % 8 or kv.data_ptr() % 16:
        return None
    rows = page // token if kv.shape[0] > 1 else kv.shape[1]
    return rows if kv.shape[0] * rows <= MAX_ROWS else None


def bytes_ahead(key: KernelKey, tiles: int) -> int:
    """Bytes that each warpgroup reads into L2 a pair of tiles ahead: a page, which is in one piece.

    Only with several row tiles (3 % at batch 1): with one memory is the limit, and reading ahead
    costs 10 % at batch 128.
    """
    return key.page_block_size * key.d_qk * 2 if tiles > 1 else 0


def descriptors(kv: Tensor, page_rows: int) -> tuple[Any, Any]:
    """TMA descriptors of the pool seen as rows: blocks of 256 and of 64 columns."""
    from flashmla_hub.backends.triton.descriptors import gluon_descriptor

    rows = (kv.shape[0] - 1) * page_rows + kv.shape[1]
    pool = (kv.data_ptr(), kv.dtype, rows, kv.shape[3], kv.stride(1))
    return gluon_descriptor(*pool, HALF), gluon_descriptor(*pool, NARROW)

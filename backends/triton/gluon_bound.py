"""The Hopper Gluon form on the host: where the installed Triton has what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backends.triton.launch import Descriptor, Launcher

TILE = 64
MAX_ROWS = 2**31 - 1


def gluon_kernel() -> Any | None:
    """The Gluon kernel, None where this Triton's Gluon (experimental) lacks a name it uses."""
    try:
        from flashmla_hub.backends.triton import descriptors  # noqa: F401
        from flashmla_hub.backends.triton.hopper_gluon import gluon_dense_kernel
    except (ImportError, AttributeError):
        return None
    return gluon_dense_kernel


def launcher(fn: Any, causal: bool, slack: int, batch: int) -> Launcher:
    constants = {"BATCH": batch, "CAUSAL": causal, "SLACK": slack}
    return Launcher(fn, constants, {"num_warps": 8, "launch_pdl": True})


def argument_types(dtype: torch.dtype) -> tuple[Any, ...]:
    f, i = torch.float32, torch.int32
    wide, narrow = Descriptor(dtype, (TILE, 512)), Descriptor(dtype, (TILE, 64))
    return (dtype, wide, narrow, i, i, dtype, f, f, 1.0, *[1] * 18)


def pool_rows(kv: Tensor) -> int | None:
    """Rows from one page to the next where the pool is one array of token rows, else None."""
    page, token = kv.stride(0), kv.stride(1)
    if kv.shape[0] == 0 or page % token or token % 8 or kv.data_ptr() % 16:
        return None
    rows = page // token if kv.shape[0] > 1 else kv.shape[1]
    return rows if kv.shape[0] * rows <= MAX_ROWS else None


def descriptors(kv: Tensor, page_rows: int) -> tuple[Any, Any]:
    """TMA descriptors of the pool seen as rows: the 512 columns of V, and blocks of 64 columns."""
    from flashmla_hub.backends.triton.descriptors import gluon_descriptor

    rows = (kv.shape[0] - 1) * page_rows + kv.shape[1]
    pool = (kv.data_ptr(), kv.dtype, rows, kv.shape[3], kv.stride(1))
    return gluon_descriptor(*pool, (TILE, 512)), gluon_descriptor(*pool, (TILE, 64))

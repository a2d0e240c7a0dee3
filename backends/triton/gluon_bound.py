"""The Hopper Gluon form on the host: where the installed Triton has what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backends.triton.launch import Descriptor, Launcher

TILE = 64
MAX_ROWS = 2**31 - 1


def gluon_kernel(tiles: int) -> Any | None:
    """The Gluon kernel that scores ``tiles`` tiles at once (1 or 2), None where this Triton's
    Gluon (experimental) lacks a name it uses."""
    try:
        from flashmla_hub.backends.triton import descriptors  # noqa: F401

        if tiles == 1:
            from flashmla_hub.backends.triton.hopper_gluon import gluon_dense_kernel as kernel
        else:
            from flashmla_hub.backends.triton.hopper_pair import gluon_pair_kernel as kernel
    except (ImportError, AttributeError):
        return None
    return kernel


def launcher(fn: Any, tiles: int, causal: bool, slack: int, batch: int) -> Launcher:
    constants = {"BATCH": batch, "CAUSAL": causal, "SLACK": slack}
    warps = 8 if tiles == 1 else 4  # the second warpgroup of a pair is a partition of its own
    return Launcher(fn, constants, {"num_warps": warps, "launch_pdl": True})


def argument_types(dtype: torch.dtype, tiles: int) -> tuple[Any, ...]:
    f, i = torch.float32, torch.int32
    wide, narrow = Descriptor(dtype, (TILE, 512 // tiles)), Descriptor(dtype, (TILE, 64))
    return (dtype, wide, narrow, i, i, dtype, f, f, 1.0, *[1] * 18)


def pool_rows(kv: Tensor) -> int | None:
    """Rows from one page to the next where the pool is one array of token rows, else None."""
    page, token = kv.stride(0), kv.stride(1)
    if kv.shape[0] == 0 or page % token or token % 8 or kv.data_ptr() % 16:
        return None
    rows = page // token if kv.shape[0] > 1 else kv.shape[1]
    return rows if kv.shape[0] * rows <= MAX_ROWS else None


def descriptors(kv: Tensor, page_rows: int, tiles: int) -> tuple[Any, Any]:
    """TMA descriptors of the pool seen as rows: blocks of 512 / ``tiles`` and of 64 columns."""
    from flashmla_hub.backends.triton.descriptors import gluon_descriptor

    rows = (kv.shape[0] - 1) * page_rows + kv.shape[1]
    pool = (kv.data_ptr(), kv.dtype, rows, kv.shape[3], kv.stride(1))
    wide, narrow = (TILE, 512 // tiles), (TILE, 64)
    return gluon_descriptor(*pool, wide), gluon_descriptor(*pool, narrow)

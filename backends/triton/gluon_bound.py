"""The Hopper Gluon forms on the host: where the installed Triton has what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backends.triton.config import FEW_ROWS, SLACK_PERCENT, Config
from flashmla_hub.backends.triton.gluon_names import missing
from flashmla_hub.backends.triton.host import VECTOR
from flashmla_hub.backends.triton.launch import Descriptor, Launcher
from flashmla_hub.request import PACKED, SPARSE_PREFILL, KernelKey

HALF, NARROW = (64, 256), (64, 64)
MAX_ROWS = 2**31 - 1
# Four warps: where there is a second warpgroup, it is a partition of its own.
OPTIONS = {"num_warps": 4, "launch_pdl": True}

Pool = tuple[tuple[Any, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """A Gluon kernel of one key, and how a pool is handed to it.

    Attributes:
        launchers: by the largest batch.
        argument_types: what to compile for.
        any_pool: whether there is no pool of this key that the kernel cannot read.
        pool: what stands for a pool among the arguments, and its strides; None: cannot be read.
    """

    launchers: Mapping[int, Launcher]
    argument_types: tuple[Any, ...]
    any_pool: bool
    pool: Callable[[Tensor], Pool | None]


def form_of(key: KernelKey, config: Config, tiles: int, classes: Iterable[int]) -> Form | None:
    """The Gluon form of ``key``; None where this Triton's Gluon (experimental) lacks a name, which
    :func:`notes` then says."""
    if not config.gluon or missing():
        return None
    if config.block_h <= FEW_ROWS:
        return _few_rows(key, config, classes)
    return _pairs(key, config, tiles, classes)


def notes() -> tuple[str, ...]:
    """For ``explain``: that the Gluon forms do not serve here, and why."""
    why = missing()
    if why is None:
        return ()
    return (f"the plain Triton form serves in place of the Gluon one for Hopper: {why}",)


def _few_rows(key: KernelKey, config: Config, classes: Iterable[int]) -> Form:
    from flashmla_hub.backends.triton.hopper_few_rows import few_rows_kernel

    constants = {"H": config.block_h, "PAGE": key.page_block_size}
    d, f, i = getattr(torch, key.dtype), torch.float32, torch.int32
    return Form(
        _launchers(few_rows_kernel, key, config, constants, classes),
        (d, d, i, i, d, f, f, 1.0, *[1] * 20),
        any_pool=True,
        pool=_as_it_is,
    )


def _pairs(key: KernelKey, config: Config, tiles: int, classes: Iterable[int]) -> Form:
    from flashmla_hub.backends.triton import descriptors  # noqa: F401
    from flashmla_hub.backends.triton.hopper_gluon import gluon_dense_kernel

    d, f, i = getattr(torch, key.dtype), torch.float32, torch.int32
    half, narrow = Descriptor(d, HALF), Descriptor(d, NARROW)
    return Form(
        _launchers(gluon_dense_kernel, key, config, {}, classes),
        (d, d, half, narrow, i, i, d, f, f, 1.0, *[1] * 19),
        any_pool=key.kv_strides == PACKED,
        pool=partial(_as_rows, bytes_ahead(key, tiles)),
    )


def sparse_launcher(key: KernelKey) -> Launcher | None:
    """The Gluon form of a sparse op; None where this Triton's Gluon lacks a name."""
    if missing():
        return None
    from flashmla_hub.backends.triton.hopper_sparse import gluon_sparse_kernel

    constants = {
        "COUNTS": key.topk_length,
        "HAS_SINK": key.attn_sink,
        "HAS_MAX": key.op == SPARSE_PREFILL,
        "PAGE": key.page_block_size,
        "FP8": key.kv_format != "dense",
    }
    return Launcher(gluon_sparse_kernel, constants, OPTIONS)


def _launchers(
    fn: Any, key: KernelKey, config: Config, constants: dict[str, Any], classes: Iterable[int]
) -> dict[int, Launcher]:
    shared = {"CAUSAL": key.causal, "SLACK": SLACK_PERCENT, "STEP": config.step, **constants}
    return {n: Launcher(fn, {**shared, "BATCH": n}, OPTIONS) for n in classes}


def _as_it_is(kv: Tensor) -> Pool:
    page, row, head, _ = kv.stride()
    return (kv,), (page // VECTOR, row // VECTOR, head // VECTOR)


def _as_rows(ahead: int, kv: Tensor) -> Pool | None:
    page_rows = pool_rows(kv)
    if page_rows is None:
        return None
    return (kv, *_descriptors(kv, page_rows)), (page_rows, ahead)


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


def _descriptors(kv: Tensor, page_rows: int) -> tuple[Any, Any]:
    """TMA descriptors of the pool seen as rows: blocks of 256 and of 64 columns."""
    from flashmla_hub.backends.triton.descriptors import gluon_descriptor

    rows = (kv.shape[0] - 1) * page_rows + kv.shape[1]
    pool = (kv.data_ptr(), kv.dtype, rows, kv.shape[3], kv.stride(1))
    return gluon_descriptor(*pool, HALF), gluon_descriptor(*pool, NARROW)

"""Stride classes and alignments of a call's tensors, as KernelKey names them."""

from __future__ import annotations

from torch import Tensor

from flashmla_hub import kv_format
from flashmla_hub.request import PACKED, PAGE_STRIDED, TOKEN_STRIDED

BEST_ALIGNMENT = 16


def alignment(x: Tensor | None, dims: int | None = None) -> int:
    """Bytes (a power of two up to 16) that the base address and the strides of the first ``dims``
    dimensions are multiples of; None: all but the last. Dimensions of size 1 have no stride that
    matters."""
    if x is None:
        return BEST_ALIGNMENT
    size, bits = x.element_size(), x.data_ptr()
    for axis in range(x.dim() - 1 if dims is None else dims):
        if x.shape[axis] > 1:
            bits |= x.stride(axis) * size
    return min(BEST_ALIGNMENT, bits & -bits or BEST_ALIGNMENT)


def cache_alignment(cache: Tensor | None, name: str) -> int:
    """``alignment`` of a cache of layout ``name``. A layout that keeps its scales page by page
    fixes where tokens lie in a page: only pages have a stride of the caller's."""
    if cache is None or name == "dense":
        return alignment(cache)
    return alignment(cache, 1 if kv_format.get(name).paged_scales else 2)


def cache_strides(cache: Tensor | None, name: str) -> str:
    """The stride class of a cache (num_blocks, page_block_size, h_kv, d). Some layouts round
    packed pages up."""
    if cache is None:
        return PACKED
    blocks, page, h_kv, width = cache.shape
    s_block, s_token, s_head, _ = cache.stride()
    if not (h_kv == 1 or s_head == width) or not (page == 1 or s_token == h_kv * width):
        return TOKEN_STRIDED
    packed = page * h_kv * width
    if name != "dense":
        packed = kv_format.get(name, width).page_stride(page)
    return PACKED if blocks <= 1 or s_block == packed else PAGE_STRIDED


def flat_strides(kv: Tensor) -> str:
    """The stride class of a flat array (s_kv, h_kv, d)."""
    rows, h_kv, width = kv.shape
    heads = h_kv == 1 or kv.stride(1) == width
    return PACKED if heads and (rows <= 1 or kv.stride(0) == h_kv * width) else TOKEN_STRIDED


def row_strides(x: Tensor | None) -> str:
    """The stride class of q or out."""
    return PACKED if x is None or x.is_contiguous() else TOKEN_STRIDED

"""What a call's shapes and strides decide, computed once and kept: the argument structure but for
its pointers, the forms of the tensor maps, the scratch and the slices of a large batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from flashmla_hub.request import KernelKey

from .geometry import (
    D_V,
    MAX_BATCH,
    MAX_CAPACITY,
    PARTIAL_ROW_BYTES,
    TAIL,
    TILE,
    Geometry,
    geometry,
    max_chunks,
    variant_for,
    workspace,
)
from .tuned import Tuning

LOG2_E = math.log2(math.e)
# Scratch of a batch-invariant launch: a larger batch is launched in slices that reuse it.
INVARIANT_WORKSPACE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """All of a tensor map but the address: dims and box in elements, strides in bytes.

    Compared by identity, which a cache key hashes at no cost: get it from :func:`form`.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


@lru_cache(maxsize=1024)
def form(dims: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]) -> Form:
    """The one Form of these values (one of them, after an eviction: then a map is made again)."""
    return Form(dims, strides, box)


@dataclass(frozen=True, slots=True)
class Slice:
    """One launch: requests ``start`` to ``start + batch``.

    ``tail`` is MlaParams behind its pointers. ``combine_ctas`` and ``scratch`` are 0 where
    nothing can have been split, and so is ``part_info``. Offsets and sizes in bytes.
    """

    start: int
    batch: int
    tail: bytes
    q_form: Form
    combine_ctas: int
    scratch: int
    partial_stats: int
    part_info: int


@dataclass(frozen=True, slots=True)
class Prepared:
    ctas: int
    out_shape: tuple[int, int, int, int]
    lse_shape: tuple[int, int, int]
    k_forms: tuple[Form, Form] | None  # None: the kernel reads no K map
    q_stride: tuple[int, int, int]  # elements: batch, token, head
    row_bytes: tuple[int, int, int, int]  # from one request to the next: q, block_table, out, lse
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Shapes and strides (elements) of a call; ``out`` and ``lse`` strides are those used."""

    q_shape: tuple[int, ...]
    q_stride: tuple[int, ...]
    pages: int
    k_stride: tuple[int, ...]
    table_width: int
    table_stride: int
    out_stride: tuple[int, ...]
    lse_stride: tuple[int, ...]


def prepare(
    key: KernelKey,
    k_maps: bool,
    multiprocessors: int,
    tuning: Tuning,
    call: Tensors,
    softmax_scale: float,
) -> Prepared:
    batch, s_q, h_q, _ = call.q_shape
    q_stride = row_strides(call.q_shape, call.q_stride)
    variant = variant_for(key)
    # Quantised kernels read q themselves, whatever its strides.
    flat = variant.family.quantised or (
        key.h_kv == 1 and (s_q == 1 or q_stride[1] == h_q * q_stride[2])
    )
    cut = geometry(key, flat, multiprocessors, variant.rows)
    capacity = min(call.table_width * key.page_block_size, MAX_CAPACITY) if call.pages else 0
    chunks = max_chunks(cut.chunk_blocks, capacity)
    head_tiles = call.k_stride[2] // TILE if key.h_kv > 1 else 0
    limit = _requests_per_launch(key, cut, chunks)
    # A request of one block is never split.
    splits = chunks > 1 if key.batch_invariant else cut.parts > 1 and capacity > TILE
    slices = []
    for start in range(0, batch, limit):
        count = min(limit, batch - start)
        scratch = workspace(
            count * chunks if key.batch_invariant else 2 * cut.parts, cut.partial_rows, cut.parts
        )
        tail = TAIL.pack(
            call.table_stride, *call.k_stride[:3], *call.out_stride[:3], *call.lse_stride,
            count, s_q, cut.group, cut.rows, cut.tile_rows, cut.tiles, cut.lanes, cut.parts,
            key.page_block_size, capacity, key.causal,
            cut.q_heads, cut.q_boxes, cut.q_box_bytes, head_tiles,
            tuning.request_cost, tuning.min_part_blocks,
            tuning.prefetch if cut.tiles >= 2 and k_maps else 0,
            tuning.evict_first // key.h_kv, tuning.evict_half // key.h_kv,
            cut.chunk_blocks, chunks, softmax_scale * LOG2_E,
        )  # fmt: skip
        slices.append(
            Slice(
                start=start,
                batch=count,
                tail=tail,
                q_form=_q_form(key, cut, q_stride, count),
                combine_ctas=min(2 * multiprocessors, 8 * count * cut.partial_rows) * splits,
                scratch=scratch.size * splits,
                partial_stats=scratch.partial_stats,
                part_info=scratch.part_info * splits,
            )
        )
    return Prepared(
        ctas=cut.parts * cut.lanes,
        out_shape=(batch, s_q, h_q, D_V),
        lse_shape=(batch, h_q, s_q),
        q_stride=q_stride,
        k_forms=None if not k_maps or not call.pages else _k_forms(key, call, head_tiles),
        row_bytes=(
            2 * q_stride[0], 4 * call.table_stride, 2 * call.out_stride[0], 4 * call.lse_stride[0]
        ),
        slices=tuple(slices),
    )  # fmt: skip


def _requests_per_launch(key: KernelKey, cut: Geometry, chunks: int) -> int:
    if not key.batch_invariant or chunks == 1:
        return MAX_BATCH
    per_request = chunks * cut.partial_rows * PARTIAL_ROW_BYTES
    return min(MAX_BATCH, max(1, INVARIANT_WORKSPACE_BYTES // per_request))


def row_strides(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int, int]:
    """(batch, token, head) strides of q; a dimension of size 1, whose stride torch leaves
    undefined, counts as packed."""
    batch, token, head = stride[:3]
    _, s_q, h_q, d = shape
    if h_q == 1:
        head = token if s_q > 1 else d
    return batch, token, head


def _q_form(key: KernelKey, cut: Geometry, stride: tuple[int, int, int], batch: int) -> Form:
    heads, tokens = (cut.rows, 1) if cut.flat else (key.h_q, key.s_q)
    dims = (TILE, heads, tokens, key.d_qk // TILE, batch)
    return form(dims, (2 * stride[2], 2 * stride[1], 2 * TILE, 2 * stride[0]), cut.q_box)


def _k_forms(key: KernelKey, call: Tensors, head_tiles: int) -> tuple[Form, Form]:
    """The left 256 columns of K, and the rest."""
    columns = key.d_qk // TILE
    dims = (TILE, key.page_block_size, (key.h_kv - 1) * head_tiles + columns, call.pages)
    strides = (2 * call.k_stride[1], 2 * TILE, 2 * call.k_stride[0])
    left, right = (form(dims, strides, (TILE, TILE, n, 1)) for n in (4, columns - 4))
    return left, right

"""What a sparse call's shapes and strides decide, computed once and kept (as prepare.py does for
dense decode). A request of the kernel is one query token; prefill's queries are rows of s_q 1."""

from __future__ import annotations

from dataclasses import dataclass

from flashmla_hub.request import SPARSE_PREFILL, KernelKey

from .geometry import (
    D_V,
    LIST_TAIL,
    MAX_BATCH,
    PARTIAL_ROW_BYTES,
    TAIL,
    TILE,
    Geometry,
    geometry,
    max_chunks,
    variant_for,
    workspace,
)
from .prepare import INVARIANT_WORKSPACE_BYTES, LOG2_E, Form, form, row_strides
from .tuned import Tuning

MAX_DEALT = 1 << 20  # requests of a launch that needs no schedule
MAX_SLOTS = 1 << 31  # an entry at or past it is negative
# Whole requests are dealt out where the busiest CTA then has at most this share more than the mean,
# and, where lengths are not known here, where each part has this many requests.
DEALT_EXCESS = 0.08
DEALT_ROUNDS = 16


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache and the lists of slots in it: shapes and strides in elements of each."""

    pages: int
    page_block_size: int
    stride: tuple[int, int, int]  # page, token, head
    width: int
    slots_stride: tuple[int, int, int]  # row, query token, KV head
    counted: bool  # a count for each row says how many entries count


NONE = Cache(0, 1, (0, 0, 0), 0, (0, 0, 0), False)


@dataclass(frozen=True, slots=True)
class ListTensors:
    """Of a call, as rows of the batch; ``out`` and ``lse`` strides are those used."""

    q_shape: tuple[int, int, int, int]
    q_stride: tuple[int, ...]
    caches: tuple[Cache, Cache]
    out_stride: tuple[int, ...]
    lse_stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ListSlice:
    """One launch, of rows ``start`` and following; as prepare.Slice."""

    start: int
    tail: bytes
    list_tail: bytes
    q_form: Form
    combine_ctas: int
    scratch: int
    partial_stats: int
    part_info: int


@dataclass(frozen=True, slots=True)
class PreparedLists:
    ctas: int
    # bytes from one row to the next: q, out, lse, slots of both lists
    row_bytes: tuple[int, int, int, int, int]
    slices: tuple[ListSlice, ...]


def prepare_lists(
    key: KernelKey,
    multiprocessors: int,
    tuning: Tuning,
    call: ListTensors,
    softmax_scale: float,
) -> PreparedLists:
    rows, s_q, *_ = call.q_shape
    q_stride = row_strides(call.q_shape, call.q_stride)
    cut = geometry(key.with_(s_q=1), key.h_kv == 1, multiprocessors, variant_for(key).rows)
    blocks = sum(-(-cache.width // TILE) for cache in call.caches)
    counted = any(cache.counted for cache in call.caches)
    # Queries of a prefill are many: batch invariant, a list is never cut.
    whole = key.batch_invariant and key.op == SPARSE_PREFILL
    chunk_blocks = 1 << 30 if whole else cut.chunk_blocks
    chunks = 1 if whole else max_chunks(chunk_blocks, blocks * TILE)
    if key.batch_invariant:
        dealt = chunks == 1
    else:
        dealt = blocks == 1 or cut.parts == 1 or _deal(rows * s_q, cut.parts, counted)
    limit = max(1, _requests_per_launch(key, cut, chunks, dealt) // s_q)
    slices = []
    for start in range(0, rows, limit):
        count = min(limit, rows - start)
        requests = count * s_q
        scratch = workspace(
            requests * chunks if key.batch_invariant else 2 * cut.parts,
            cut.partial_rows,
            cut.parts,
        )
        tail = TAIL.pack(
            0, 0, 0, 0, *call.out_stride[:3], *call.lse_stride,
            requests, s_q, cut.group, cut.rows, cut.tile_rows, cut.tiles, cut.lanes, cut.parts,
            1, blocks * TILE, 0,
            cut.q_heads, cut.q_boxes, cut.q_box_bytes, 0,
            tuning.request_cost, tuning.min_part_blocks, 0, 0, 0,
            chunk_blocks, chunks, softmax_scale * LOG2_E,
        )  # fmt: skip
        slices.append(
            ListSlice(
                start=start,
                tail=tail,
                list_tail=_list_tail(call.caches, dealt, key.kv_format == "model1"),
                q_form=_q_form(key, cut, q_stride, s_q, count),
                combine_ctas=0
                if dealt
                else min(2 * multiprocessors, 8 * requests * cut.partial_rows),
                scratch=0 if dealt else scratch.size,
                partial_stats=scratch.partial_stats,
                part_info=0 if dealt else scratch.part_info,
            )
        )
    first, second = call.caches
    return PreparedLists(
        ctas=cut.parts * cut.lanes,
        row_bytes=(
            2 * q_stride[0], 2 * call.out_stride[0], 4 * call.lse_stride[0],
            4 * first.slots_stride[0], 4 * second.slots_stride[0],
        ),
        slices=tuple(slices),
    )  # fmt: skip


def _deal(requests: int, parts: int, counted: bool) -> bool:
    """Whether whole requests, dealt out one by one, keep every part busy."""
    if requests >= DEALT_ROUNDS * parts:
        return True
    rounds = -(-requests // parts)
    return not counted and rounds * parts <= requests * (1 + DEALT_EXCESS)


def _requests_per_launch(key: KernelKey, cut: Geometry, chunks: int, dealt: bool) -> int:
    if dealt:
        return MAX_DEALT
    if not key.batch_invariant:
        return MAX_BATCH
    per_request = chunks * cut.partial_rows * PARTIAL_ROW_BYTES
    return min(MAX_BATCH, max(1, INVARIANT_WORKSPACE_BYTES // per_request))


def _list_tail(caches: tuple[Cache, Cache], dealt: bool, paged: bool) -> bytes:
    """``paged``: where a token's bytes lie depends on its page."""
    strides: list[int] = []
    for i in range(3):
        strides += [cache.slots_stride[i] for cache in caches]
    pages, steps = zip(*(_pages(cache, paged) for cache in caches), strict=True)
    for i in range(3):
        strides += [step[i] for step in steps]
    bits = [(n - 1).bit_length() for n in pages]
    multipliers = [
        0 if n & (n - 1) == 0 else -(-(1 << 31 + b) // n) for n, b in zip(pages, bits, strict=True)
    ]
    slots = [min(cache.pages * cache.page_block_size, MAX_SLOTS) for cache in caches]
    return LIST_TAIL.pack(
        *strides, *(cache.width for cache in caches), *map(_as_int32, slots), *pages,
        *map(_as_int32, multipliers), *bits, dealt, 0,
    )  # fmt: skip


def _pages(cache: Cache, paged: bool) -> tuple[int, tuple[int, int, int]]:
    """Page size and strides for the kernel: pages of one token where slots are equally spaced."""
    page, token, head = cache.stride
    if paged:
        return cache.page_block_size, (page, token, head)
    if cache.page_block_size == 1:
        return 1, (page, page, head)
    if page == cache.page_block_size * token or cache.pages <= 1:
        return 1, (token, token, head)
    return cache.page_block_size, (page, token, head)


def _as_int32(n: int) -> int:
    return n - (1 << 32) if n >= 1 << 31 else n


def _q_form(
    key: KernelKey, cut: Geometry, stride: tuple[int, int, int], s_q: int, rows: int
) -> Form:
    dims = (TILE, key.h_q, s_q, key.d_qk // TILE, rows)
    return form(dims, (2 * stride[2], 2 * stride[1], 2 * TILE, 2 * stride[0]), cut.q_box)


def out_strides(s_q: int, h_q: int) -> tuple[int, int, int, int]:
    return s_q * h_q * D_V, h_q * D_V, D_V, 1


def lse_strides(s_q: int, h_q: int) -> tuple[int, int, int]:
    return h_q * s_q, s_q, 1

"""How a request is cut for the kernel: variant, rows, tiles, parts, boxes (csrc/README.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from flashmla_hub.request import DENSE_DECODE, TOKEN_STRIDED, KernelKey

from .variants import BOXES, LIST_ROWS, PAGE_ROWS, QUANTISED_FAMILIES, Variant

D_V = 512
TILE = 64  # rows of a tile and tokens of a block
MAX_BATCH = 4096  # requests that the schedule of one launch takes
MAX_PARTS = 144  # shares of the batch that the combine kernel keeps track of
MAX_CAPACITY = 2**31 - 64
PARTIAL_ROW_BYTES = 2 * D_V + 16  # a row of partial_out (fp16) and of partial_stats (4 floats)

# struct MlaParams: 8 pointers; then 10 strides, 22 ints, scale_log2 and its padding; then
# ListParams: 8 pointers; then 12 strides and 12 ints
POINTERS = struct.Struct("=8Q")
TAIL = struct.Struct("=10q22if4x")
LIST_POINTERS = struct.Struct("=8Q")
LIST_TAIL = struct.Struct("=12q12i")
QUANTISED_PARAMS = struct.Struct("=3Q3q")  # struct QuantisedParams: 3 pointers, 3 strides
LISTS_OFFSET = POINTERS.size + TAIL.size
PARAMS_BYTES = LISTS_OFFSET + LIST_POINTERS.size + LIST_TAIL.size


def variant_for(key: KernelKey) -> Variant:
    """The compile-time choices that serve ``key``."""
    lists = key.op != DENSE_DECODE
    formats = (f for f in QUANTISED_FAMILIES if (f.kv_format, f.lists) == (key.kv_format, lists))
    if (family := next(formats, None)) is not None:
        needed = key.h_q if lists else key.s_q * key.h_q
        rows = next((n for n in family.rows if needed <= n), family.rows[-1])
        return Variant(family, key.dtype == "float16", key.d_qk, key.batch_invariant, rows)
    # Tensor maps step over KV heads in multiples of 64 elements, which a free token stride does not
    # promise.
    odd_heads = key.h_kv > 1 and key.kv_strides == TOKEN_STRIDED
    page = key.page_block_size
    boxes = page % 64 == 0 and page & (page - 1) == 0  # 64 times a power of two
    family = BOXES if boxes and not odd_heads else PAGE_ROWS
    if lists:
        family = LIST_ROWS
    return Variant(family, key.dtype == "float16", key.d_qk, key.batch_invariant)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The parts of the argument structure that the key, the form of q and the device fix.

    ``flat``: the rows of a request are equally spaced in q, so one dimension spans them.
    """

    flat: bool
    group: int
    rows: int
    tile_rows: int
    tiles: int
    lanes: int
    parts: int
    q_heads: int
    q_box: tuple[int, int, int, int, int]
    q_boxes: int  # boxes that cover the columns of a tile: 1 or one for each 64 columns
    chunk_blocks: int

    @property
    def q_box_bytes(self) -> int:
        a, b, c, d, e = self.q_box
        return 2 * a * b * c * d * e

    @property
    def partial_rows(self) -> int:
        """Rows of a slot of the workspace."""
        return self.lanes * self.tile_rows


def geometry(key: KernelKey, flat: bool, multiprocessors: int, most_rows: int = TILE) -> Geometry:
    """The cut for ``key`` on a device with that many multiprocessors, into tiles of at most that
    many rows."""
    group = key.h_q // key.h_kv
    rows = key.s_q * group
    columns = key.d_qk // TILE
    if flat:
        tile_rows = min(most_rows, rows)
    elif group <= TILE:
        tile_rows = group * min(key.s_q, TILE // group)
    else:
        tile_rows = next(n for n in range(TILE, 0, -1) if group % n == 0)
    tiles = -(-rows // tile_rows)
    lanes = key.h_kv * tiles
    if flat:
        box = (TILE, tile_rows, 1, columns if tile_rows == TILE else 1, 1)
    else:
        heads = min(group, tile_rows)
        box = (TILE, heads, tile_rows // heads, columns if tile_rows == TILE else 1, 1)
    return Geometry(
        flat=flat,
        group=group,
        rows=rows,
        tile_rows=tile_rows,
        tiles=tiles,
        lanes=lanes,
        parts=max(1, min(MAX_PARTS, multiprocessors // lanes)),
        q_heads=rows if flat else group,
        q_box=box,
        q_boxes=columns // box[3],
        chunk_blocks=16 if rows <= TILE // 2 else 32,
    )


def max_chunks(chunk_blocks: int, capacity: int) -> int:
    """Slots of one request in a batch-invariant launch."""
    blocks = -(-capacity // TILE)
    return max(1, min(32, -(-blocks // chunk_blocks)))


@dataclass(frozen=True, slots=True)
class Workspace:
    """Byte sizes and offsets of the scratch of one launch, in one allocation."""

    partial_stats: int
    part_info: int
    size: int


def workspace(slots: int, partial_rows: int, parts: int) -> Workspace:
    """partial_out at 0, then partial_stats, then part_info, 16-byte aligned."""
    rows = slots * partial_rows
    part_info = rows * PARTIAL_ROW_BYTES
    return Workspace(rows * D_V * 2, part_info, _align(part_info + parts * 4))


def _align(offset: int) -> int:
    return -(-offset // 16) * 16

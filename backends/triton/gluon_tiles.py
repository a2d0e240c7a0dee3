"""What the Hopper Gluon kernels do beside their main loops: planning, copies, zeroing.

Each of these is run by one warpgroup, four warps.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

# Names that changed: thread_barrier became barrier in 3.7, async_copy_global_to_shared (of tma and
# of async_copy) async_load in 3.8 (and left in 3.9), _reinterpret reinterpret in 3.9.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_new = hasattr(tma, "async_load")
_load = tma.async_load if _new else tma.async_copy_global_to_shared
load_rows = async_copy.async_load if _new else async_copy.async_copy_global_to_shared
_memory = gl.shared_memory_descriptor
_view = _memory.reinterpret if hasattr(_memory, "reinterpret") else _memory._reinterpret

LN2 = gl.constexpr(0.6931471805599453)
HALF_BYTES = gl.constexpr(64 * 256 * 2)
ROPE_BYTES = gl.constexpr(64 * 64 * 2)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def plan(
    lens, part, batch, parts, capacity, BATCH: gl.constexpr, SLACK: gl.constexpr, STEP: gl.constexpr
):
    """schedule.part_range and request_range, with the layouts that Gluon wants spelled out."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    idx = gl.arange(0, BATCH, layout=layout)
    n = gl.load(lens + idx, mask=idx < batch, other=0)
    n = gl.minimum(gl.maximum(n, 0), capacity)
    blocks = gl.where(idx < batch, gl.maximum((n + 63) // 64, 1), 0)
    total = gl.sum(blocks, 0)
    per_part = (total + parts * STEP - 1) // (parts * STEP) * STEP
    whole = (batch + parts - 1) // parts
    heaviest = whole.to(gl.int64) * gl.max(blocks, 0)
    aligned = heaviest * 100 <= per_part.to(gl.int64) * (100 + SLACK)
    lo = gl.minimum(part * per_part, total)
    hi = gl.minimum(lo + per_part, total)
    lo = gl.where(aligned, gl.sum(gl.where(idx < part * whole, blocks, 0), 0), lo)
    hi = gl.where(aligned, gl.sum(gl.where(idx < (part + 1) * whole, blocks, 0), 0), hi)
    after = gl.associative_scan(blocks, 0, _add)
    first = gl.sum(((after <= lo) & (idx < batch)).to(gl.int32), 0)
    end = gl.sum((((after - blocks) < hi) & (idx < batch)).to(gl.int32), 0)
    before = gl.sum(gl.where(idx < first, blocks, 0), 0)
    return lo, hi, first, gl.where(hi <= lo, first, end), before


@gluon.jit
def length_of(lens, r, capacity):
    """The length of request ``r``, as schedule.clamp_length has it."""
    return gl.minimum(gl.maximum(gl.load(lens + r), 0), capacity)


@gluon.jit
def fill(half, narrow, row, full, halves, ropes, wanted, T: gl.constexpr, RIGHT: gl.constexpr):
    """Start the copy of one half of tile T of a pair; the right one brings the rope columns."""
    bar = full.index(2 * T + RIGHT)
    mbarrier.expect(bar, HALF_BYTES + RIGHT * ROPE_BYTES, pred=wanted)
    _load(half, [row, 256 * RIGHT], bar, halves.index(T), pred=wanted)
    if RIGHT:
        _load(narrow, [row, 512], bar, ropes.index(T), pred=wanted)


@gluon.jit
def prefetch(kv, row, size):
    """Read ``size`` bytes, none where it is 0, from packed pool row ``row`` on into L2."""
    lane = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [4], [0]))
    at = kv + (row.to(gl.int64) * 576 + lane * 0)
    size = gl.where(lane == 0, size, 0)  # one request, by one thread: each costs the copy unit time
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0;"
        " @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [at.to(gl.int64), size], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def as_words(halves, N: gl.constexpr, WORDS: gl.constexpr):
    """N panels of 64 columns, two columns to a 32-bit word."""
    return _view(halves, gl.int32, [N, 64, 32], WORDS)


@gluon.jit
def zero_rows(halves, kept, SHARED: gl.constexpr):
    """Zero the rows of one half of a pair of tiles from ``kept`` on: slots past the length may hold
    NaN, which a weight of 0 does not remove. The other warpgroup may be reading the tiles for its
    scores: those of tokens past the length are masked anyway. Panel by panel in a loop, to need few
    registers and little code: what a launch fetches cold costs microseconds."""
    panels = _view(halves, halves.dtype, [8, 64, 64], SHARED)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    for c in range(kept // 64 * 4, 8):
        panel = panels.index(c)
        value = panel.load(layout)
        panel.store(gl.where((c // 4 * 64 + row < kept)[:, None], value, 0.0))
    fence_async_shared()
    barrier()


@gluon.jit
def rows_of_pair(table, table_b, r, block, last, length, page_rows):
    """Pool rows of blocks ``block`` and ``block + 1``, the second clamped to the last used one."""
    row_table = table + r.to(gl.int64) * table_b
    used = length > 0
    a = gl.load(row_table + gl.minimum(block, last), mask=used, other=0) * page_rows
    b = gl.load(row_table + gl.minimum(block + 1, last), mask=used, other=0) * page_rows
    return a, b

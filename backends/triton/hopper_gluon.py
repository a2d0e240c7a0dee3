"""Dense decode for Hopper at 64 query rows and more, in Gluon.

Eight warps share one 64-token tile at a time; two tiles are in flight. Against the plain form,
TMA fills a slot as soon as the output product of its last use is done (a whole iteration ahead),
where Triton's pipeliner issues the copy at the end of an iteration. Written for 576/512, pages
of 64 tokens, one KV head; same partials and the same combine as the plain form.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Names that changed: thread_barrier became barrier in 3.7, async_copy_global_to_shared
# async_load in 3.8 (and left in 3.9).
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared

LN2 = gl.constexpr(0.6931471805599453)
TILE_BYTES = gl.constexpr(64 * 576 * 2)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _plan(
    lens, part, batch, parts, capacity,
    BATCH: gl.constexpr, SLACK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """schedule.part_range and request_range, with the layouts that Gluon wants spelled out."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    idx = gl.arange(0, BATCH, layout=layout)
    n = gl.load(lens + idx, mask=idx < batch, other=0)
    n = gl.minimum(gl.maximum(n, 0), capacity)
    blocks = gl.where(idx < batch, gl.maximum((n + 63) // 64, 1), 0)
    total = gl.sum(blocks, 0)
    per_part = (total + parts - 1) // parts
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
def _fill(kv_c, kv_r, row, bar, kc, kr, wanted):
    mbarrier.expect(bar, TILE_BYTES, pred=wanted)
    _load(kv_c, [row, 0], bar, kc, pred=wanted)
    _load(kv_r, [row, 512], bar, kr, pred=wanted)


@gluon.jit
def _zero_rows(kc, kept):
    """Zero the rows of a tile from ``kept`` on: slots past the length may hold NaN, which a weight
    of 0 does not remove. Piecewise, to need few registers."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    for c in gl.static_range(8):
        piece = kc.slice(c * 64, 64, dim=1)
        value = piece.load(layout)
        piece.store(gl.where((row < kept)[:, None], value, 0.0))
    fence_async_shared()
    _barrier()


_RUNTIME = [
    "table", "lens", "lse", "scale", "q_b", "q_t", "q_h", "page_rows", "table_b", "out_b", "out_t",
    "out_h", "lse_b", "lse_h", "lse_t", "batch", "s_q", "group", "tiles", "parts", "capacity",
    "part_rows",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME)
def gluon_dense_kernel(
    q, kv_c, kv_r, table, lens, out, lse, scratch, scale,
    q_b, q_t, q_h, page_rows, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    batch, s_q, group, tiles, parts, capacity, part_rows,
    BATCH: gl.constexpr, CAUSAL: gl.constexpr, SLACK: gl.constexpr,
):  # fmt: skip
    """As dense.dense_kernel; kv_c, kv_r: descriptors of the pool's rows, blocks of 64 x 512 and
    64 x 64; page_rows: rows from one page to the next."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 256, 16])  # noqa: E741
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    dtype: gl.constexpr = q.dtype.element_ty
    gdc_wait()
    gdc_launch_dependents()
    pid = gl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    lo, hi, first, end, before = _plan(lens, part, batch, parts, capacity, BATCH, SLACK, 8)
    qc = gl.allocate_shared_memory(dtype, [64, 512], SHARED)
    qr = gl.allocate_shared_memory(dtype, [64, 64], SHARED)
    kcs = gl.allocate_shared_memory(dtype, [2, 64, 512], SHARED)
    krs = gl.allocate_shared_memory(dtype, [2, 64, 64], SHARED)
    ps = gl.allocate_shared_memory(dtype, [64, 64], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for j in gl.static_range(2):
        mbarrier.init(full.index(j), count=1)
    fence_async_shared()
    _barrier()
    visible = s_q * group
    done = 0  # tiles consumed so far: gives the slot and the phase of its barrier
    for r in range(first, end):
        length = gl.minimum(gl.maximum(gl.load(lens + r), 0), capacity)
        n_r = gl.maximum((length + 63) // 64, 1)
        b0 = gl.maximum(lo - before, 0)
        b1 = gl.minimum(hi - before, n_r)
        stop = gl.minimum(b1, (length + 63) // 64)
        row_table = table + r.to(gl.int64) * table_b
        last = gl.maximum((length + 63) // 64 - 1, 0)
        row0 = gl.load(row_table + gl.minimum(b0, last), mask=length > 0, other=0) * page_rows
        row1 = gl.load(row_table + gl.minimum(b0 + 1, last), mask=length > 0, other=0) * page_rows
        row2 = gl.load(row_table + gl.minimum(b0 + 2, last), mask=length > 0, other=0) * page_rows
        s0 = done & 1
        s1 = s0 ^ 1
        _fill(kv_c, kv_r, row0, full.index(s0), kcs.index(s0), krs.index(s0), b0 < stop)
        _fill(kv_c, kv_r, row1, full.index(s1), kcs.index(s1), krs.index(s1), b0 + 1 < stop)
        base = q + r.to(gl.int64) * q_b * 8
        rows = tile * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, WIDE))
        cols = gl.arange(0, 512, layout=gl.SliceLayout(0, WIDE))
        at = (rows // group * q_t + rows % group * q_h) * 8
        ok = (rows < visible)[:, None]
        qc.store(gl.load(base + at[:, None] + cols[None, :], mask=ok, other=0.0))
        rows = tile * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, NARROW))
        cols = 512 + gl.arange(0, 64, layout=gl.SliceLayout(0, NARROW))
        at = (rows // group * q_t + rows % group * q_h) * 8
        ok = (rows < visible)[:, None]
        qr.store(gl.load(base + at[:, None] + cols[None, :], mask=ok, other=0.0))
        fence_async_shared()
        _barrier()
        rows = tile * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, S))
        if CAUSAL:
            limit = gl.minimum(length - s_q + rows // group + 1, length)
        else:
            limit = rows * 0 + length
        tokens = gl.arange(0, 64, layout=gl.SliceLayout(0, S))
        m = gl.full([64], -1e30, gl.float32, layout=gl.SliceLayout(1, S))
        total = gl.full([64], 0.0, gl.float32, layout=gl.SliceLayout(1, S))
        o = gl.zeros([64, 512], gl.float32, layout=O)
        for i in range(b0, stop):
            slot = done & 1
            bar = full.index(slot)
            kc = kcs.index(slot)
            kr = krs.index(slot)
            mbarrier.wait(bar, (done >> 1) & 1)
            if (i + 1) * 64 > length:
                _zero_rows(kc, length - i * 64)
            zero = gl.zeros([64, 64], gl.float32, layout=S)
            s = warpgroup_mma(qc, kc.permute((1, 0)), zero, use_acc=False, is_async=True)
            s = warpgroup_mma(qr, kr.permute((1, 0)), s, is_async=True)
            s = warpgroup_mma_wait(0, deps=(s,))
            x = gl.where((i * 64 + tokens)[None, :] < limit[:, None], s, -float("inf"))
            new = gl.maximum(m, gl.max(x, 1) * scale)  # scale > 0
            p = gl.exp2(x * scale - new[:, None])
            alpha = gl.exp2(m - new)
            m = new
            ps.store(p.to(dtype))
            fence_async_shared()
            o = o * gl.convert_layout(alpha, gl.SliceLayout(1, O))[:, None]
            _barrier()
            o = warpgroup_mma(ps, kc, o, is_async=True)
            total = total * alpha + gl.sum(p, 1)  # while the tensor cores work
            o = warpgroup_mma_wait(0, deps=(o,))
            _barrier()
            _fill(kv_c, kv_r, row2, bar, kc, kr, i + 2 < stop)
            row2 = gl.load(row_table + gl.minimum(i + 3, last)) * page_rows
            done += 1
        alive = total > 0
        inv = gl.where(alive, 1.0 / total, 0.0)
        log_sum = m + gl.log2(total)
        o = o * gl.convert_layout(inv, gl.SliceLayout(1, O))[:, None]
        local = gl.arange(0, 64, layout=gl.SliceLayout(1, O))
        wide = tile * 64 + local
        cols = gl.arange(0, 512, layout=gl.SliceLayout(0, O))
        ok = (wide < visible)[:, None]
        if (b0 == 0) & (b1 == n_r):
            o_at = (wide // group * out_t + wide % group * out_h) * 8
            o_base = out + r.to(gl.int64) * out_b * 8
            gl.store(o_base + o_at[:, None] + cols[None, :], o.to(dtype), mask=ok)
            l_at = r.to(gl.int64) * lse_b + rows % group * lse_h + rows // group * lse_t
            log_sum = gl.where(alive, log_sum * LN2, float("inf"))
            gl.store(lse + l_at, log_sum, mask=rows < visible)
        else:
            s_row = ((part * 2 + (b0 == 0).to(gl.int32)) * tiles + tile).to(gl.int64) * 64
            gl.store(scratch + s_row * 512 + (local[:, None] * 512 + cols[None, :]), o, mask=ok)
            logs = scratch + part_rows.to(gl.int64) * 512 + s_row
            log_sum = gl.where(alive, log_sum, -float("inf"))
            gl.store(logs + (rows - tile * 64), log_sum, mask=rows < visible)
        before += n_r

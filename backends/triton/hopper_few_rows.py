"""Dense decode for Hopper up to 16 query rows, in Gluon: the tokens fill the tensor cores.

wgmma has 64 rows: here they are the tokens of the scores (S^T = K Q^T) and the value columns of the
output (O^T = V^T P^T), and the query rows are its narrow side. Nothing is padded, and one
warpgroup keeps up with memory, which is the limit at so few rows. A tile is refilled as soon as
its values have been added, while the other is on its way: in the plain form the copy of a tile
starts when the one before has arrived, and for a moment nothing is in flight. Page ids are read a
tile earlier still, and the next request's query comes during the last tile of the one before.
Written for 576/512, pages of any size; same partials and the same combine as the plain form.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashmla_hub.backends.triton.gluon_tiles import (
    LN2,
    barrier,
    length_of,
    load_rows,
    plan,
)

# Four rows of 128 bytes an instruction: a thread needs the addresses of few rows.
COPY = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


@gluon.jit
def _copy(at, ok, left, right, rope):
    """Start the copy of the 576 columns of the rows at ``at``; a row that is not ok becomes 0."""
    cols = gl.arange(0, 256, layout=gl.SliceLayout(0, COPY))
    cols_r = gl.arange(0, 64, layout=gl.SliceLayout(0, COPY))
    at = at[:, None]
    ok = ok[:, None]
    load_rows(left, at + cols[None, :], mask=ok)
    load_rows(right, at + (256 + cols)[None, :], mask=ok)
    load_rows(rope, at + (512 + cols_r)[None, :], mask=ok)


@gluon.jit
def _copy_query(
    q, q_b, q_t, q_h, r, tile, s_q, group, q_left, q_right, q_rope, H: gl.constexpr
):  # fmt: skip
    rows = gl.arange(0, H, layout=gl.SliceLayout(1, COPY))
    at = q + r.to(gl.int64) * q_b * 8
    head = (tile * group + rows % group).to(gl.int64)
    at += ((rows // group).to(gl.int64) * q_t + head * q_h) * 8
    _copy(at, rows < s_q * group, q_left.index(0), q_right.index(0), q_rope.index(0))


@gluon.jit
def _pages(table, table_b, r, block, length, wanted, PAGE: gl.constexpr):
    """Of the tokens of block ``block`` of request r: page ids, places in the pages, and which
    there are. The others are copied as zeros: unused slots may hold NaN, which a weight of 0 does
    not remove."""
    n = block * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, COPY))
    ok = wanted & (n < length)
    ids = gl.load(table + r.to(gl.int64) * table_b + n // PAGE, mask=ok, other=0)
    return ids, n % PAGE, ok


@gluon.jit
def _token_rows(kv, ids, offsets, kv_page, kv_row):
    return kv + (ids.to(gl.int64) * kv_page + offsets.to(gl.int64) * kv_row) * 8


@gluon.jit
def _next_tile(lens, r, block, length, end, capacity):
    """The tile after block ``block`` of request r; past the last request's it starts over."""
    block += 1
    if block >= (length + 63) // 64:
        block = 0
        r = gl.minimum(r + 1, end - 1)
        length = length_of(lens, r, capacity)
    return r, block, length


_RUNTIME = [
    "table", "lens", "lse", "scale", "q_b", "q_t", "q_h", "kv_page", "kv_row", "kv_head", "table_b",
    "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "batch", "s_q", "group", "tiles", "parts",
    "capacity", "part_rows",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME)
def few_rows_kernel(
    q, kv, table, lens, out, lse, scratch, scale,
    q_b, q_t, q_h, kv_page, kv_row, kv_head, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    batch, s_q, group, tiles, parts, capacity, part_rows,
    H: gl.constexpr, PAGE: gl.constexpr, BATCH: gl.constexpr, CAUSAL: gl.constexpr,
    SLACK: gl.constexpr, STEP: gl.constexpr,
):  # fmt: skip
    """As dense.dense_kernel, with one tile of H rows for each KV head."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, H, 16])
    ROW: gl.constexpr = gl.SliceLayout(0, S)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    dtype: gl.constexpr = q.dtype.element_ty
    gdc_wait()
    if BATCH > 32:
        gdc_launch_dependents()
    pid = gl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    lo, hi, first, end, before = plan(lens, part, batch, parts, capacity, BATCH, SLACK, STEP)
    q_left = gl.allocate_shared_memory(dtype, [1, H, 256], SHARED)
    q_right = gl.allocate_shared_memory(dtype, [1, H, 256], SHARED)
    q_rope = gl.allocate_shared_memory(dtype, [1, H, 64], SHARED)
    left = gl.allocate_shared_memory(dtype, [2, 64, 256], SHARED)
    right = gl.allocate_shared_memory(dtype, [2, 64, 256], SHARED)
    ropes = gl.allocate_shared_memory(dtype, [2, 64, 64], SHARED)
    weights = gl.allocate_shared_memory(dtype, [1, H, 64], SHARED)
    kv += tile.to(gl.int64) * kv_head * 8
    rows = gl.arange(0, H, layout=ROW)
    tokens = gl.arange(0, 64, layout=gl.SliceLayout(1, S))
    z = part >> 30  # always 0: see hopper_gluon.py
    used = 0  # tiles consumed so far, of hi - lo
    # The tile whose page ids are read next; tiles follow each other across requests.
    r_fill, b_fill, length_fill = first, 0, 0
    if first < end:
        length_fill = length_of(lens, first, capacity)
        b_fill = gl.maximum(lo - before, 0)
        ids, offsets, ok = _pages(table, table_b, r_fill, b_fill, length_fill, True, PAGE)
        r_fill, b_fill, length_fill = _next_tile(lens, r_fill, b_fill, length_fill, end, capacity)
        second = lo + 1 < hi
        ids_1, offsets_1, ok_1 = _pages(
            table, table_b, r_fill, b_fill, length_fill, second, PAGE
        )  # fmt: skip
        _copy_query(q, q_b, q_t, q_h, first, tile, s_q, group, q_left, q_right, q_rope, H)
        at = _token_rows(kv, ids, offsets, kv_page, kv_row)
        _copy(at, ok, left.index(0), right.index(0), ropes.index(0))
        async_copy.commit_group()
        if second:
            at = _token_rows(kv, ids_1, offsets_1, kv_page, kv_row)
            _copy(at, ok_1, left.index(1), right.index(1), ropes.index(1))
        async_copy.commit_group()
        r_fill, b_fill, length_fill = _next_tile(lens, r_fill, b_fill, length_fill, end, capacity)
    ids, offsets, ok = _pages(table, table_b, r_fill, b_fill, length_fill, lo + 2 < hi, PAGE)
    for r in range(first, end):
        length = length_of(lens, r, capacity)
        n_r = gl.maximum((length + 63) // 64, 1)
        b0 = gl.maximum(lo - before, 0)
        b1 = gl.minimum(hi - before, n_r)
        stop = gl.minimum(length, b1 * 64)  # tokens of this segment end here
        shared = stop  # tokens below it are visible to every row
        if CAUSAL:
            limit = gl.minimum(length - s_q + rows // group + 1, stop)
            shared = gl.minimum(length - s_q + 1, stop)
        else:
            limit = rows * 0 + stop
        m = gl.full([H], -1e30, gl.float32, layout=ROW)
        total = gl.full([64, H], 0.0, gl.float32, layout=S)
        o_left = gl.zeros([256, H], gl.float32, layout=S)
        o_right = gl.zeros([256, H], gl.float32, layout=S)
        for i in range(b0, b1):
            z &= i
            slot = used & 1
            k_left = left.index(slot)
            k_right = right.index(slot)
            k_rope = ropes.index(slot)
            async_copy.wait_group(1)  # of the copies only the next tile's may be on its way
            fence_async_shared()
            barrier()
            s = gl.zeros([64, H], gl.float32, layout=S)
            q_t_left = q_left.index(z).permute((1, 0))
            q_t_right = q_right.index(z).permute((1, 0))
            q_t_rope = q_rope.index(z).permute((1, 0))
            s = warpgroup_mma(k_left, q_t_left, s, use_acc=False, is_async=True)
            s = warpgroup_mma(k_right, q_t_right, s, is_async=True)
            s = warpgroup_mma(k_rope, q_t_rope, s, is_async=True)
            at = _token_rows(kv, ids, offsets, kv_page, kv_row)
            at_ok = ok
            r_fill, b_fill, length_fill = _next_tile(
                lens, r_fill, b_fill, length_fill, end, capacity
            )  # fmt: skip
            ids, offsets, ok = _pages(
                table, table_b, r_fill, b_fill, length_fill, lo + used + 3 < hi, PAGE
            )  # fmt: skip
            s = warpgroup_mma_wait(0, deps=(s,))
            if (i + 1) * 64 > shared:
                s = gl.where((i * 64 + tokens)[:, None] < limit[None, :], s, -float("inf"))
            new = gl.maximum(m, gl.max(s, 0) * scale)  # scale > 0
            if (i + 1 == b1) & (r + 1 < end):
                barrier()  # every warp is past its scores
                _copy_query(q, q_b, q_t, q_h, r + 1, tile, s_q, group, q_left, q_right, q_rope, H)
                async_copy.commit_group()  # before the group of the tile after the next
            p = gl.exp2(s * scale - new[None, :])
            alpha = gl.exp2(m - new)
            m = new
            total = total * alpha[None, :] + p
            p_t = weights.index(z).permute((1, 0))
            p_t.store(p.to(dtype))
            o_left = o_left * alpha[None, :]
            o_right = o_right * alpha[None, :]
            fence_async_shared()
            barrier()
            o_left = warpgroup_mma(k_left.permute((1, 0)), p_t, o_left, is_async=True)
            o_right = warpgroup_mma(k_right.permute((1, 0)), p_t, o_right, is_async=True)
            o_left, o_right = warpgroup_mma_wait(0, deps=(o_left, o_right))
            barrier()
            if lo + used + 2 < hi:
                _copy(at, at_ok, k_left, k_right, k_rope)
            async_copy.commit_group()
            used += 1
        if BATCH <= 32:  # late, as in dense.py
            gdc_launch_dependents()
        sums = gl.sum(total, 0)
        alive = sums > 0
        inv = gl.where(alive, 1.0 / sums, 0.0)
        log_sum = m + gl.log2(sums)
        o_left = (o_left * inv[None, :]).permute((1, 0))
        o_right = (o_right * inv[None, :]).permute((1, 0))
        seen = rows < s_q * group
        token = rows // group
        head = tile * group + rows % group
        wide = gl.arange(0, H, layout=gl.SliceLayout(1, WIDE))
        cols = gl.arange(0, 256, layout=gl.SliceLayout(0, WIDE))
        wide_seen = (wide < s_q * group)[:, None]
        if (b0 == 0) & (b1 == n_r):
            o_at = (wide // group).to(gl.int64) * out_t * 8
            o_at += (tile * group + wide % group).to(gl.int64) * out_h * 8
            o_row = out + r.to(gl.int64) * out_b * 8 + (o_at[:, None] + cols[None, :])
            gl.store(o_row, gl.convert_layout(o_left.to(dtype), WIDE), mask=wide_seen)
            gl.store(o_row + 256, gl.convert_layout(o_right.to(dtype), WIDE), mask=wide_seen)
            l_at = r.to(gl.int64) * lse_b + head.to(gl.int64) * lse_h
            l_at += token.to(gl.int64) * lse_t
            gl.store(lse + l_at, gl.where(alive, log_sum * LN2, float("inf")), mask=seen)
        else:
            s_row = ((part * 2 + (b0 == 0).to(gl.int32)) * tiles + tile).to(gl.int64) * H
            s_at = scratch + s_row * 512 + (wide[:, None] * 512 + cols[None, :])
            gl.store(s_at, gl.convert_layout(o_left, WIDE), mask=wide_seen)
            gl.store(s_at + 256, gl.convert_layout(o_right, WIDE), mask=wide_seen)
            logs = scratch + part_rows.to(gl.int64) * 512 + s_row
            gl.store(logs + rows, gl.where(alive, log_sum, -float("inf")), mask=seen)
        before += n_r

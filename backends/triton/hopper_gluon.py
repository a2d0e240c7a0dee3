"""Dense decode for Hopper from 17 query rows on, in Gluon: two warpgroups, two tiles at once.

Each warpgroup scores its own 64-token tile of a pair, and both then add both tiles to their own
half of the output columns; maxima and weights cross through shared memory. Half tiles are
refilled by the warpgroup whose product drains them, and each begins its scores with the half that
was refilled first. Against the plain form, whose products and softmax take turns, one warpgroup
works on weights while the other keeps the tensor cores busy. Written for 576/512, pages of 64
tokens, one KV head; same partials and the same combine as the plain form. Warpgroup W owns tile W
of a pair for scores and output columns [256 W, 256 W + 256).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashmla_hub.backends.triton.gluon_pairs import (
    ROW,
    O,
    S,
    add_first,
    add_second,
    allocate,
    load_query,
    scores,
    sum_of_both,
)
from flashmla_hub.backends.triton.gluon_tiles import (
    LN2,
    barrier,
    fill,
    length_of,
    plan,
    prefetch,
    rows_of_pair,
)


@gluon.jit
def _warpgroup(
    q, kv, half, narrow, table, lens, out, lse, scratch, scale,
    q_b, q_t, q_h, page_rows, ahead, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    s_q, group, tiles, capacity, part_rows, part, tile, lo, hi, first, end, before,
    memory, W: gl.constexpr, CAUSAL: gl.constexpr, BATCH: gl.constexpr,
):  # fmt: skip
    q_left, q_right, left, right, ropes, ps, maxima, sums, full, turn = memory
    dtype: gl.constexpr = q.dtype.element_ty
    halves = left if W == 0 else right
    visible = s_q * group
    pairs = 0  # pairs consumed so far: gives the phase of the barriers
    # Always 0, which the compiler cannot tell, and may change from pair to pair for all it knows:
    # of slots that it knows, it keeps the address of every product in registers, and spills
    # 300 bytes of others (Triton 3.6 to 3.9).
    z = part >> 30
    if first < end:
        length = length_of(lens, first, capacity)
        last = gl.maximum((length + 63) // 64 - 1, 0)
        b0 = gl.maximum(lo - before, 0)
        row_a, row_b = rows_of_pair(table, table_b, first, b0, last, length, page_rows)
        if W == 0:
            fill(half, narrow, row_a, full, left, ropes, True, 0, 0)
            fill(half, narrow, row_b, full, left, ropes, True, 1, 0)
        else:
            fill(half, narrow, row_b, full, right, ropes, True, 1, 1)
            fill(half, narrow, row_a, full, right, ropes, True, 0, 1)
    for r in range(first, end):
        length = length_of(lens, r, capacity)
        n_r = gl.maximum((length + 63) // 64, 1)
        last = n_r - 1
        b0 = gl.maximum(lo - before, 0)
        b1 = gl.minimum(hi - before, n_r)
        r_next = gl.minimum(r + 1, end - 1)
        length_next = length_of(lens, r_next, capacity)
        last_next = gl.maximum((length_next + 63) // 64 - 1, 0)

        q_rope = load_query(
            q + r.to(gl.int64) * q_b * 8, q_t, q_h, tile, group, visible, q_left, q_right, turn,
            (r - first) & 1, W,
        )  # fmt: skip
        stop = gl.minimum(length, b1 * 64)  # tokens of this segment end here
        shared = stop  # tokens below it are visible to every row
        rows = tile * 64 + gl.arange(0, 64, layout=ROW)
        if CAUSAL:
            limit = gl.minimum(length - s_q + rows // group + 1, stop)
            shared = gl.minimum(length - s_q + 1, stop)
        else:
            limit = rows * 0 + stop
        tokens = gl.arange(0, 64, layout=gl.SliceLayout(0, S))
        m = gl.full([64], -1e30, gl.float32, layout=ROW)
        total = gl.full([64], 0.0, gl.float32, layout=ROW)
        o = gl.zeros([64, 256], gl.float32, layout=O)
        for i in range(b0, b1, 2):
            phase = pairs & 1
            final = i + 2 >= b1
            more = (i + 2 < b1) | (r + 1 < end)
            row_a, row_b = rows_of_pair(
                table, table_b, gl.where(final, r_next, r), gl.where(final, 0, i + 2),
                gl.where(final, last_next, last), gl.where(final, length_next, length), page_rows,
            )  # fmt: skip
            z &= i
            prefetch(kv, row_a if W == 0 else row_b, gl.where(more, ahead, 0))
            s = scores(q_left, q_right, q_rope, left, right, ropes, full, phase, z, W, False)
            s = warpgroup_mma_wait(0, deps=(s,))
            if (i + W + 1) * 64 > shared:
                s = gl.where(((i + W) * 64 + tokens)[None, :] < limit[:, None], s, -float("inf"))
            ragged = (i + 2) * 64 > stop
            o, m, total, alpha = add_first(
                s, scale, m, total, o, halves, ps, maxima, full, turn, phase, z, ragged,
                stop - i * 64, W, False,
            )  # fmt: skip
            if W == 0:
                fill(half, narrow, row_a, full, left, ropes, more, 0, 0)
            else:
                fill(half, narrow, row_b, full, right, ropes, more, 1, 1)
            o = add_second(o, alpha, halves, ps, full, phase, z, W, False)
            if W == 0:
                fill(half, narrow, row_b, full, left, ropes, more, 1, 0)
            else:
                fill(half, narrow, row_a, full, right, ropes, more, 0, 1)
            pairs += 1
        if BATCH <= 32:  # late, as in dense.py
            gdc_launch_dependents()
        total = sum_of_both(total, sums, turn, (r - first) & 1, W)
        alive = total > 0
        inv = gl.where(alive, 1.0 / total, 0.0)
        log_sum = m + gl.log2(total)
        o = o * gl.convert_layout(inv, gl.SliceLayout(1, O))[:, None]
        local = gl.arange(0, 64, layout=gl.SliceLayout(1, O))
        wide = tile * 64 + local
        cols = W * 256 + gl.arange(0, 256, layout=gl.SliceLayout(0, O))
        ok = (wide < visible)[:, None]
        rows = tile * 64 + gl.arange(0, 64, layout=ROW)
        if (b0 == 0) & (b1 == n_r):
            o_at = (wide // group).to(gl.int64) * out_t * 8
            o_at += (wide % group).to(gl.int64) * out_h * 8
            o_base = out + r.to(gl.int64) * out_b * 8
            gl.store(o_base + o_at[:, None] + cols[None, :], o.to(dtype), mask=ok)
            if W == 0:
                l_at = r.to(gl.int64) * lse_b + (rows % group).to(gl.int64) * lse_h
                l_at += (rows // group).to(gl.int64) * lse_t
                log_sum = gl.where(alive, log_sum * LN2, float("inf"))
                gl.store(lse + l_at, log_sum, mask=rows < visible)
        else:
            s_row = ((part * 2 + (b0 == 0).to(gl.int32)) * tiles + tile).to(gl.int64) * 64
            gl.store(scratch + s_row * 512 + (local[:, None] * 512 + cols[None, :]), o, mask=ok)
            if W == 0:
                logs = scratch + part_rows.to(gl.int64) * 512 + s_row
                log_sum = gl.where(alive, log_sum, -float("inf"))
                gl.store(logs + (rows - tile * 64), log_sum, mask=rows < visible)
        before += n_r


@gluon.jit
def _first(args, CAUSAL: gl.constexpr, BATCH: gl.constexpr):
    _warpgroup(*args, 0, CAUSAL, BATCH)


@gluon.jit
def _second(args, CAUSAL: gl.constexpr, BATCH: gl.constexpr):
    _warpgroup(*args, 1, CAUSAL, BATCH)


_RUNTIME = [
    "table", "lens", "lse", "scale", "q_b", "q_t", "q_h", "page_rows", "ahead", "table_b", "out_b",
    "out_t", "out_h", "lse_b", "lse_h", "lse_t", "batch", "s_q", "group", "tiles", "parts",
    "capacity", "part_rows",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME)
def gluon_dense_kernel(
    q, kv, half, narrow, table, lens, out, lse, scratch, scale,
    q_b, q_t, q_h, page_rows, ahead, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    batch, s_q, group, tiles, parts, capacity, part_rows,
    BATCH: gl.constexpr, CAUSAL: gl.constexpr, SLACK: gl.constexpr, STEP: gl.constexpr,
):  # fmt: skip
    """As dense.dense_kernel; half, narrow: descriptors of the pool's rows, blocks of 64 x 256 and
    64 x 64; page_rows: rows from one page to the next; ahead: bytes of a tile to read into L2 a
    pair ahead, 0: none."""
    gdc_wait()
    if BATCH > 32:
        gdc_launch_dependents()
    pid = gl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    lo, hi, first, end, before = plan(lens, part, batch, parts, capacity, BATCH, SLACK, STEP)
    memory = allocate(q.dtype.element_ty, 1)
    fence_async_shared()
    barrier()
    args = (
        q, kv, half, narrow, table, lens, out, lse, scratch, scale,
        q_b, q_t, q_h, page_rows, ahead, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
        s_q, group, tiles, capacity, part_rows, part, tile, lo, hi, first, end, before,
        memory,
    )  # fmt: skip
    gl.warp_specialize(
        [(_first, (args, CAUSAL, BATCH)), (_second, (args, CAUSAL, BATCH))], [4], [256]
    )

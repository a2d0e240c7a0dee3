"""Sparse decode and prefill for Hopper, in Gluon: the pairs of gluon_pairs.py over listed tokens.

As hopper_gluon.py, but the tokens of a tile lie anywhere: they are copied, or fetched and
dequantised by a third warpgroup (gluon_lists.py). Programs take items in turn: a row tile of a part
of one query's list; those of one part are side by side, and the first tokens of the next item come
during the last of the one before. Written for 576/512 and one KV head.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashmla_hub.backends.triton.gluon_lists import COPY_ROWS, gather, item_of, listed, producer
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
from flashmla_hub.backends.triton.gluon_tiles import LN2, barrier

LOG2E = gl.constexpr(1.4426950408889634)
ANY = gl.constexpr(1 << 30)  # heads of a token: a tile has rows of one


@gluon.jit
def _warpgroup(
    q, kv, indices, counts, sink, out, lse, max_logits, scratch, scale,
    q_b, q_t, q_h, kv_page, kv_row, index_b, index_t, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    items, tiles, splits, s_q, h_q, topk, slots, part_rows,
    memory, empty,
    W: gl.constexpr, COUNTS: gl.constexpr, HAS_SINK: gl.constexpr, HAS_MAX: gl.constexpr,
    PAGE: gl.constexpr, FP8: gl.constexpr,
):  # fmt: skip
    q_left, q_right, left, right, ropes, ps, maxima, sums, full, turn = memory
    dtype: gl.constexpr = q.dtype.element_ty
    halves = left if W == 0 else right
    pid = gl.program_id(0)
    step = gl.num_programs(0)
    z = pid >> 30  # always 0: see hopper_gluon.py
    pairs = 0  # pairs consumed so far: gives the phase of the barriers
    if not FP8:
        b, t, part, tile, entries, count, lo, hi = item_of(
            pid, tiles, splits, s_q, indices, index_b, index_t, counts, topk, COUNTS
        )
        slot_w = listed(entries, 2 * lo + W, count, slots, COPY_ROWS)
        slot_o = listed(entries, 2 * lo + 1 - W, count, slots, COPY_ROWS)
        gather(kv, kv_page, kv_row, slot_w, halves, ropes, full, PAGE, W, W)
        gather(kv, kv_page, kv_row, slot_o, halves, ropes, full, PAGE, 1 - W, W)
    for item in range(pid, items, step):
        b, t, part, tile, entries, count, lo, hi = item_of(
            item, tiles, splits, s_q, indices, index_b, index_t, counts, topk, COUNTS
        )
        if not FP8:
            item_next = gl.minimum(item + step, items - 1)
            _, _, _, _, entries_next, count_next, lo_next, _ = item_of(
                item_next, tiles, splits, s_q, indices, index_b, index_t, counts, topk, COUNTS
            )
        q_rope = load_query(
            q + (b.to(gl.int64) * q_b + t.to(gl.int64) * q_t) * 8, 0, q_h, tile, ANY, h_q,
            q_left, q_right, turn, item // step & 1, W,
        )  # fmt: skip
        m = gl.full([64], -1e30, gl.float32, layout=ROW)
        total = gl.full([64], 0.0, gl.float32, layout=ROW)
        o = gl.zeros([64, 256], gl.float32, layout=O)
        for i in range(lo, hi):
            phase = pairs & 1
            z &= i
            s = scores(q_left, q_right, q_rope, left, right, ropes, full, phase, z, W, True)
            if not FP8:
                final = i + 1 >= hi
                more = (i + 1 < hi) | (item + step < items)
                fill = gl.where(final, lo_next, i + 1)
                entries_fill = gl.where(final, entries_next, entries)
                count_fill = gl.where(final, count_next, count)
                slot_w = listed(entries_fill, 2 * fill + W, count_fill, slots, COPY_ROWS)
                slot_o = listed(entries_fill, 2 * fill + 1 - W, count_fill, slots, COPY_ROWS)
            mine = listed(entries, 2 * i + W, count, slots, gl.SliceLayout(0, S))
            s = warpgroup_mma_wait(0, deps=(s,))
            s = gl.where((mine >= 0)[None, :], s, -float("inf"))
            o, m, total, alpha = add_first(
                s, scale, m, total, o, halves, ps, maxima, full, turn, phase, z, False, 0, W,
                True,
            )  # fmt: skip
            if FP8:  # the half of tile W, at 2 * W + W
                mbarrier.arrive(empty.index(3 * W), count=1)
            elif more:
                gather(kv, kv_page, kv_row, slot_w, halves, ropes, full, PAGE, W, W)
            o = add_second(o, alpha, halves, ps, full, phase, z, W, True)
            if FP8:  # the half of the other tile, at 2 * (1 - W) + W
                mbarrier.arrive(empty.index(2 - W), count=1)
            elif more:
                gather(kv, kv_page, kv_row, slot_o, halves, ropes, full, PAGE, 1 - W, W)
            pairs += 1
        total = sum_of_both(total, sums, turn, item // step & 1, W)
        alive = total > 0
        log_sum = m + gl.log2(total)
        rows = tile * 64 + gl.arange(0, 64, layout=ROW)
        inv = gl.where(alive, 1.0 / total, 0.0)
        local = gl.arange(0, 64, layout=gl.SliceLayout(1, O))
        wide = tile * 64 + local
        ok = (wide < h_q)[:, None]
        cols = W * 256 + gl.arange(0, 256, layout=gl.SliceLayout(0, O))
        if splits == 1:
            if HAS_SINK:
                logit = gl.load(sink + rows, mask=rows < h_q, other=0.0) * LOG2E
                inv = gl.where(alive, inv / (1.0 + gl.exp2(logit - log_sum)), 0.0)
            o = o * gl.convert_layout(inv, gl.SliceLayout(1, O))[:, None]
            o_at = out + (b.to(gl.int64) * out_b + t.to(gl.int64) * out_t) * 8
            o_at += (wide.to(gl.int64) * out_h * 8)[:, None] + cols[None, :]
            gl.store(o_at, o.to(dtype), mask=ok)
            if W == 0:
                l_at = b.to(gl.int64) * lse_b + t.to(gl.int64) * lse_t + rows.to(gl.int64) * lse_h
                log_sum = gl.where(alive, log_sum * LN2, float("inf"))
                gl.store(lse + l_at, log_sum, mask=rows < h_q)
                if HAS_MAX:
                    top = gl.where(alive, m * LN2, -float("inf"))
                    gl.store(max_logits + l_at, top, mask=rows < h_q)
        else:
            o = o * gl.convert_layout(inv, gl.SliceLayout(1, O))[:, None]
            s_row = (part * tiles + tile).to(gl.int64) * 64
            s_at = scratch + s_row * 512 + (local[:, None] * 512 + cols[None, :])
            gl.store(s_at, o, mask=ok)
            if W == 0:
                logs = scratch + part_rows.to(gl.int64) * 512 + s_row + (rows - tile * 64)
                log_sum = gl.where(alive, log_sum, -float("inf"))
                gl.store(logs, log_sum, mask=rows < h_q)
                gl.store(logs + part_rows, m, mask=rows < h_q)


@gluon.jit
def _first(
    args, COUNTS: gl.constexpr, HAS_SINK: gl.constexpr, HAS_MAX: gl.constexpr, PAGE: gl.constexpr,
    FP8: gl.constexpr,
):  # fmt: skip
    _warpgroup(*args, 0, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)


@gluon.jit
def _second(
    args, COUNTS: gl.constexpr, HAS_SINK: gl.constexpr, HAS_MAX: gl.constexpr, PAGE: gl.constexpr,
    FP8: gl.constexpr,
):  # fmt: skip
    _warpgroup(*args, 1, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)


@gluon.jit
def _third(args, COUNTS: gl.constexpr, PAGE: gl.constexpr):
    producer(*args, COUNTS, PAGE)


_RUNTIME = [
    "indices", "counts", "sink", "lse", "max_logits", "scale", "q_b", "q_t", "q_h", "kv_page",
    "kv_row", "index_b", "index_t", "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "items",
    "tiles", "splits", "s_q", "h_q", "topk", "slots", "part_rows",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME)
def gluon_sparse_kernel(
    q, kv, indices, counts, sink, out, lse, max_logits, scratch, scale,
    q_b, q_t, q_h, kv_page, kv_row, index_b, index_t, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    items, tiles, splits, s_q, h_q, topk, slots, part_rows,
    COUNTS: gl.constexpr, HAS_SINK: gl.constexpr, HAS_MAX: gl.constexpr, PAGE: gl.constexpr,
    FP8: gl.constexpr,
):  # fmt: skip
    """As sparse.sparse_kernel; items: queries * splits * tiles."""
    gdc_wait()
    gdc_launch_dependents()
    # cp.async signals for each thread that copies
    memory = allocate(q.dtype.element_ty, 1 if FP8 else 128)
    left, right, ropes, full = memory[2], memory[3], memory[4], memory[8]
    empty = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    for j in gl.static_range(4):
        mbarrier.init(empty.index(j), count=1)
    fence_async_shared()
    barrier()
    args = (
        q, kv, indices, counts, sink, out, lse, max_logits, scratch, scale,
        q_b, q_t, q_h, kv_page, kv_row, index_b, index_t, out_b, out_t, out_h, lse_b, lse_h, lse_t,
        items, tiles, splits, s_q, h_q, topk, slots, part_rows,
        memory, empty,
    )  # fmt: skip
    fill_args = (
        kv, indices, counts, kv_page, kv_row, index_b, index_t, items, tiles, splits, s_q, topk,
        slots, left, right, ropes, full, empty,
    )  # fmt: skip
    if FP8:
        gl.warp_specialize(
            [
                (_first, (args, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)),
                (_second, (args, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)),
                (_third, (fill_args, COUNTS, PAGE)),
            ],
            [4, 4],
            [208, 88],  # registers: 72 for the third cost it 3 %, more for it spill in the others
        )
    else:
        gl.warp_specialize(
            [
                (_first, (args, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)),
                (_second, (args, COUNTS, HAS_SINK, HAS_MAX, PAGE, FP8)),
            ],
            [4],
            [256],
        )

"""Merging the partials of split requests, in a fixed order."""

import triton
import triton.language as tl

from flashmla_hub.backends.triton.schedule import balance, chunk_blocks, request_blocks

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def merge_splits(
    scratch, part_rows, slots_at, stride, ns, tile, row_in_tile, tiles, row_ok, cols,
    STARTS_ODD: tl.constexpr, H: tl.constexpr, DV: tl.constexpr, RB: tl.constexpr,
    CB: tl.constexpr, SB: tl.constexpr,
):  # fmt: skip
    """Weighted mean of ``ns`` partials, log2 of their total, and whether any was alive.

    Split s sits in slot ``slots_at + s * stride``, one more for s = 0 when STARTS_ODD. One pass,
    SB splits at a time: lse and values are loaded together, as latency is all this costs.
    A partial with lse -inf has weight 0 and is never multiplied: it may not have been written.
    """
    top = tl.full((RB,), -1e30, tl.float32)
    total = tl.zeros((RB,), tl.float32)
    acc = tl.zeros((RB, CB), tl.float32)
    logs_at = scratch + tl.cast(part_rows, tl.int64) * DV
    for j in tl.range(0, ns, SB, num_stages=1):
        s = j + tl.arange(0, SB)
        slot = slots_at + s * stride
        if STARTS_ODD:
            slot += (s == 0).to(tl.int32)
        at = tl.cast(slot[:, None] * tiles + tile[None, :], tl.int64) * H + row_in_tile[None, :]
        ok = (s[:, None] < ns) & row_ok[None, :]
        logs = tl.load(logs_at + at, mask=ok, other=-float("inf"))
        v_at = scratch + at[:, :, None] * DV + cols[None, None, :]
        v = tl.load(v_at, mask=ok[:, :, None], other=0.0)
        new = tl.maximum(top, tl.max(logs, 0))
        w = tl.exp2(logs - new[None, :])
        keep = tl.exp2(top - new)
        top = new
        total = total * keep + tl.sum(w, 0)
        v = tl.where((logs > -float("inf"))[:, :, None], v, 0.0)
        acc = acc * keep[:, None] + tl.sum(v * w[:, :, None], 0)
    inv = tl.where(total > 0, 1.0 / total, 0.0)
    return acc * inv[:, None], top + tl.log2(total), total > 0


_RUNTIME = [
    "lens", "lse", "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "batch", "s_q", "group",
    "tiles", "tiles_per_head", "parts", "capacity", "part_rows", "slot_stride",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def combine_kernel(
    scratch, lens, out, lse,
    out_b, out_t, out_h, lse_b, lse_h, lse_t,
    batch, s_q, group, tiles, tiles_per_head, parts, capacity, part_rows, slot_stride,
    DV: tl.constexpr, H: tl.constexpr, N: tl.constexpr, BATCH: tl.constexpr, SLACK: tl.constexpr,
    STEP: tl.constexpr, INVARIANT: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr,
    RB: tl.constexpr, CB: tl.constexpr, SB: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (min(requests, part boundaries), row groups of RB over all KV heads, DV / CB).

    With more requests than boundaries, boundary e merges the request whose first inner boundary
    it is; else program e merges request e.
    """
    e = tl.program_id(0)
    idx, blocks = request_blocks(lens, batch, capacity, BATCH, N)
    total, per_part, _, aligned = balance(blocks, batch, parts, SLACK, STEP)
    if INVARIANT:
        r = e
        n_r = tl.sum(tl.where(idx == r, blocks, 0), 0)
        chunk = chunk_blocks(n_r, CHUNK, SPLITS)
        ns = (n_r + chunk - 1) // chunk
        slots_at = r * slot_stride
        work = ns > 1
    else:
        edge = (e + 1) * per_part
        at_edge = tl.sum(((tl.cumsum(blocks, 0) <= edge) & (idx < batch)).to(tl.int32), 0)
        by_request = batch < parts
        r = tl.where(by_request, e, at_edge)
        start = tl.sum(tl.where(idx < r, blocks, 0), 0)
        stop = start + tl.sum(tl.where(idx == r, blocks, 0), 0)
        p0 = start // per_part
        ns = (stop - 1) // per_part - p0 + 1
        first_edge = (edge < total) & (start < edge) & (p0 == e)
        slots_at = p0 * 2
        work = (ns > 1) & (by_request | first_edge) & (aligned == 0)
    if PDL:
        # Also where there is nothing to merge: what follows this kernel in the stream relies on
        # it having waited for the main kernel.
        tl.extra.cuda.gdc_wait()
    if work:
        i = tl.program_id(1) * RB + tl.arange(0, RB)
        per_head = s_q * group
        kv_head_id = i // per_head
        rows = i % per_head
        row_ok = kv_head_id * tiles_per_head < tiles
        tile = kv_head_id * tiles_per_head + rows // H
        cols = tl.program_id(2) * CB + tl.arange(0, CB)
        stride = 1 if INVARIANT else 2
        acc, log_sum, alive = merge_splits(
            scratch, part_rows, slots_at, stride, ns, tile, rows % H, tiles, row_ok, cols,
            not INVARIANT, H, DV, RB, CB, SB,
        )  # fmt: skip
        token = rows // group
        head = kv_head_id * group + rows % group
        token_at = tl.cast(token, tl.int64)
        head_at = tl.cast(head, tl.int64)
        o_row = out + (tl.cast(r, tl.int64) * out_b + token_at * out_t + head_at * out_h) * 8
        o_at = o_row[:, None] + cols[None, :]
        tl.store(o_at, acc.to(out.dtype.element_ty), mask=row_ok[:, None])
        if tl.program_id(2) == 0:
            l_at = lse + tl.cast(r, tl.int64) * lse_b + head_at * lse_h + token_at * lse_t
            tl.store(l_at, tl.where(alive, log_sum * LN2, float("inf")), mask=row_ok)

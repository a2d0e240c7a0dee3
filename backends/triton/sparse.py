"""Sparse attention over listed tokens (DSA): decode and prefill, bf16/fp16 and FP8 caches; and
dense decode over FP8 caches, whose lists are the rows of the block table.

Each query (request, token) has its own list, so the rows of a tile are the heads of one query.
"""

import triton
import triton.language as tl

from flashmla_hub.backends.triton import softmax
from flashmla_hub.backends.triton.combine import merge_splits
from flashmla_hub.backends.triton.dense import scores
from flashmla_hub.backends.triton.kv import (
    dequantize,
    fetch,
    load_slots,
    prefetch,
    rope_of,
    tensor_factor,
)

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    qc, qr, m, total, acc, acc_r, slot, kc, kr, scale,
    V_ROPE: tl.constexpr, DR: tl.constexpr, BREAK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    x, scale = scores(qc, qr, kc, kr, scale, DR > 0, BREAK)
    x = tl.where((slot >= 0)[None, :], x, -float("inf"))
    if BREAK:
        # Always true; see dense._block.
        if tl.max(slot, 0) > -2:
            p, alpha, m, total = softmax.step(x, scale, m, total, SPREAD)
            p = p.to(kc.dtype)
        else:
            p = x.to(kc.dtype)
            alpha = m
    else:
        p, alpha, m, total = softmax.step(x, scale, m, total, SPREAD)
        p = p.to(kc.dtype)
    acc = tl.dot(p, kc, acc * alpha[:, None])
    if V_ROPE:
        acc_r = tl.dot(p, kr, acc_r * alpha[:, None])
    return m, total, acc, acc_r


@triton.jit
def _sweep(
    qc, qr, m, total, acc, acc_r, indices, first, end, count, slots, cache, page_stride, row_stride,
    scale, factor, cols, cols_r,
    PAGE: tl.constexpr, PAGED: tl.constexpr, FORMAT: tl.constexpr, N: tl.constexpr,
    DV: tl.constexpr, DR: tl.constexpr, HARDWARE: tl.constexpr, BREAK: tl.constexpr,
    SPREAD: tl.constexpr, PREFETCH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Attend to blocks [first, end) of one list.

    Unquantised tiles go through Triton's pipeline (which takes its depth from the compiler
    option: with a depth on the loop itself it would pipeline the loads of the slots as well, and
    then no tile). FP8 tiles it leaves alone: they are fetched a block ahead into registers, and
    their slots two blocks ahead; with PREFETCH, where registers are short, a block ahead to L2.
    """
    V_ROPE: tl.constexpr = FORMAT == "model1"
    tokens = tl.arange(0, N)
    count = tl.minimum(count, end * N)
    slot = load_slots(indices, first * N + tokens, count, slots, PAGE, PAGED)
    if FORMAT == "dense":
        for i in tl.range(first, end):
            here = slot
            slot = load_slots(indices, (i + 1) * N + tokens, count, slots, PAGE, PAGED)
            kc, _, kr = fetch(
                cache, here, page_stride, row_stride, cols, cols_r, FORMAT, PAGE, DV, DR, UNIT
            )
            m, total, acc, acc_r = _attend(
                qc, qr, m, total, acc, acc_r, here, kc, kr, scale, V_ROPE, DR, BREAK, SPREAD
            )
    elif PREFETCH:
        for i in tl.range(first, end, num_stages=1):
            here = slot
            values, scales, rope = fetch(
                cache, here, page_stride, row_stride, cols, cols_r, FORMAT, PAGE, DV, DR, UNIT
            )
            slot = load_slots(indices, (i + 1) * N + tokens, count, slots, PAGE, PAGED)
            prefetch(
                indices, i + 1, count, slots, cache, page_stride, row_stride,
                FORMAT, N, PAGE, PAGED, DR,
            )  # fmt: skip
            kc = dequantize(values, scales, factor, FORMAT, N, DV, HARDWARE, qc.dtype)
            kr = rope_of(rope, factor, FORMAT, HARDWARE, qc.dtype)
            m, total, acc, acc_r = _attend(
                qc, qr, m, total, acc, acc_r, here, kc, kr, scale, V_ROPE, DR, BREAK, SPREAD
            )
    else:
        after = load_slots(indices, (first + 1) * N + tokens, count, slots, PAGE, PAGED)
        values, scales, rope = fetch(
            cache, slot, page_stride, row_stride, cols, cols_r, FORMAT, PAGE, DV, DR, UNIT
        )
        for i in tl.range(first, end, num_stages=1):
            here = slot
            slot = after
            after = load_slots(indices, (i + 2) * N + tokens, count, slots, PAGE, PAGED)
            kc = dequantize(values, scales, factor, FORMAT, N, DV, HARDWARE, qc.dtype)
            kr = rope_of(rope, factor, FORMAT, HARDWARE, qc.dtype)
            values, scales, rope = fetch(
                cache, slot, page_stride, row_stride, cols, cols_r, FORMAT, PAGE, DV, DR, UNIT
            )
            m, total, acc, acc_r = _attend(
                qc, qr, m, total, acc, acc_r, here, kc, kr, scale, V_ROPE, DR, BREAK, SPREAD
            )
    return m, total, acc, acc_r


@triton.jit
def _write(
    out, lse, max_logits, sink, o, o_r, log_sum, top, alive, b, t, head, cols, cols_r, row_ok,
    lse_ok, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    NOPE: tl.constexpr, V_ROPE: tl.constexpr, HAS_SINK: tl.constexpr, HAS_MAX: tl.constexpr,
):  # fmt: skip
    if HAS_SINK:
        s = tl.load(sink + head, mask=row_ok, other=0.0)
        weight = tl.where(alive, 1.0 / (1.0 + tl.exp2(s * LOG2E - log_sum)), 0.0)
        o = o * weight[:, None]
        if V_ROPE:
            o_r = o_r * weight[:, None]
    row = out + (tl.cast(b, tl.int64) * out_b + tl.cast(t, tl.int64) * out_t) * 8
    row += tl.cast(head, tl.int64) * out_h * 8
    kept = row_ok[:, None] & (cols < NOPE)[None, :]
    tl.store(row[:, None] + cols[None, :], o.to(out.dtype.element_ty), mask=kept)
    if V_ROPE:
        at = row[:, None] + (NOPE + cols_r)[None, :]
        tl.store(at, o_r.to(out.dtype.element_ty), mask=row_ok[:, None])
    at = tl.cast(b, tl.int64) * lse_b + tl.cast(t, tl.int64) * lse_t
    at += tl.cast(head, tl.int64) * lse_h
    tl.store(lse + at, tl.where(alive, log_sum * LN2, float("inf")), mask=lse_ok)
    if HAS_MAX:
        tl.store(max_logits + at, tl.where(alive, top * LN2, -float("inf")), mask=lse_ok)


_RUNTIME = [
    "indices", "counts", "extra_indices", "extra_counts", "sink", "lse", "max_logits", "scale",
    "q_b", "q_t", "q_h", "kv_page", "kv_row", "kv_head", "extra_page", "extra_row",
    "index_b", "index_t", "index_h", "extra_index_b", "extra_index_t", "topk", "extra_topk",
    "slots", "extra_slots", "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "s_q", "group",
    "tiles", "tiles_per_head", "splits", "part_rows", "descale", "scaled",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def sparse_kernel(
    q, kv, indices, counts, extra_kv, extra_indices, extra_counts, sink, out, lse, max_logits,
    scratch, scale,
    q_b, q_t, q_h, kv_page, kv_row, kv_head, extra_page, extra_row,
    index_b, index_t, index_h, extra_index_b, extra_index_t, topk, extra_topk, slots, extra_slots,
    out_b, out_t, out_h, lse_b, lse_h, lse_t,
    s_q, group, tiles, tiles_per_head, splits, part_rows, descale, scaled,
    FORMAT: tl.constexpr, EXTRA_FORMAT: tl.constexpr, NOPE: tl.constexpr, DV: tl.constexpr,
    DR: tl.constexpr, H: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr,
    EXTRA_PAGE: tl.constexpr, COUNTS: tl.constexpr, EXTRA_COUNTS: tl.constexpr,
    HAS_SINK: tl.constexpr,
    HAS_MAX: tl.constexpr, BREAK: tl.constexpr, SPREAD: tl.constexpr, PREFETCH: tl.constexpr,
    HARDWARE: tl.constexpr, PAGED: tl.constexpr, CAUSAL: tl.constexpr, PDL: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Program (query * tiles + row tile, split): a range of the blocks of both lists.

    Strides of q and out in 16-byte vectors, of the caches in UNIT elements (bytes of FP8). With one
    split the result is written out, else partials go to ``scratch``: part_rows rows of DV floats
    (columns in the order of ``out``), then part_rows log2 lse, then part_rows maxima. EXTRA_PAGE
    0: no second cache. PAGED: a dense call; the lists are rows of the block table, ``counts`` the
    lengths and ``topk`` the table's capacity. descale: the scale of an fp8 cache where ``scaled``
    is 1.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    pid = tl.program_id(0)
    split = tl.program_id(1)
    query = pid // tiles
    tile = pid % tiles
    b = query // s_q
    t = query % s_q
    head_kv = tile // tiles_per_head
    rows = (tile % tiles_per_head) * H + tl.arange(0, H)
    row_ok = rows < group
    head = head_kv * group + rows
    cols = tl.arange(0, DV)
    cols_r = tl.arange(0, DR if DR > 0 else 16)
    V_ROPE: tl.constexpr = FORMAT == "model1"

    count = topk
    if COUNTS:
        count = tl.minimum(tl.maximum(tl.load(counts + b), 0), topk)
    if CAUSAL:
        count = tl.maximum(count - s_q + t + 1, 0)
    blocks = (count + N - 1) // N
    all_blocks = blocks
    extra_count = 0
    if EXTRA_PAGE > 0:
        extra_count = extra_topk
        if EXTRA_COUNTS:
            extra_count = tl.minimum(tl.maximum(tl.load(extra_counts + b), 0), extra_topk)
        all_blocks += (extra_count + N - 1) // N
    per_split = (all_blocks + splits - 1) // splits
    lo = split * per_split
    hi = tl.minimum(lo + per_split, all_blocks)

    q_row = q + (tl.cast(b, tl.int64) * q_b + tl.cast(t, tl.int64) * q_t) * 8
    # Through uint32: widened as below for the output, the 64-bit heads would stay in registers.
    q_row += head.to(tl.uint32).to(tl.int64) * q_h * 8
    kept = row_ok[:, None] & (cols < NOPE)[None, :]
    qc = tl.load(q_row[:, None] + cols[None, :], mask=kept, other=0.0)
    qr = qc
    if DR > 0:
        qr = tl.load(q_row[:, None] + (NOPE + cols_r)[None, :], mask=row_ok[:, None], other=0.0)
    factor = 1.0
    if FORMAT == "fp8":
        factor = tensor_factor(descale, scaled)
    m, total = softmax.start(H, N, SPREAD)
    acc = tl.zeros((H, DV), tl.float32)
    acc_r = tl.zeros((H, DR if V_ROPE else 16), tl.float32)

    row = indices + tl.cast(b, tl.int64) * index_b + tl.cast(t, tl.int64) * index_t
    row += tl.cast(head_kv, tl.int64) * index_h
    cache = kv + tl.cast(head_kv, tl.int64) * kv_head * UNIT
    page_stride = tl.cast(kv_page, tl.int64) * UNIT
    row_stride = tl.cast(kv_row, tl.int64) * UNIT
    m, total, acc, acc_r = _sweep(
        qc, qr, m, total, acc, acc_r, row, lo, tl.minimum(hi, blocks), count, slots, cache,
        page_stride, row_stride, scale, factor, cols, cols_r,
        PAGE, PAGED, FORMAT, N, DV, DR, HARDWARE, BREAK, SPREAD, PREFETCH, UNIT,
    )  # fmt: skip
    if EXTRA_PAGE > 0:
        row = extra_indices + tl.cast(b, tl.int64) * extra_index_b
        row += tl.cast(t, tl.int64) * extra_index_t
        page_stride = tl.cast(extra_page, tl.int64) * UNIT
        row_stride = tl.cast(extra_row, tl.int64) * UNIT
        m, total, acc, acc_r = _sweep(
            qc, qr, m, total, acc, acc_r, row, tl.maximum(lo - blocks, 0), hi - blocks,
            extra_count, extra_slots, extra_kv, page_stride, row_stride, scale, factor,
            cols, cols_r, EXTRA_PAGE, False, EXTRA_FORMAT, N, DV, DR, HARDWARE, BREAK, SPREAD,
            PREFETCH, UNIT,
        )  # fmt: skip

    inv, log_sum, alive = softmax.finish(m, total, SPREAD)
    o = acc * inv[:, None]
    o_r = acc_r * inv[:, None]
    if splits == 1:
        _write(
            out, lse, max_logits, sink, o, o_r, log_sum, m, alive, b, t, head, cols, cols_r, row_ok,
            row_ok, out_b, out_t, out_h, lse_b, lse_h, lse_t, NOPE, V_ROPE, HAS_SINK, HAS_MAX,
        )  # fmt: skip
    else:
        s_row = (tl.cast(query, tl.int64) * splits + split) * tiles + tile
        s_row = s_row * H + tl.arange(0, H)
        at = scratch + s_row[:, None] * DV
        tl.store(at + cols[None, :], o, mask=kept)
        if V_ROPE:
            tl.store(at + (NOPE + cols_r)[None, :], o_r, mask=row_ok[:, None])
        logs = scratch + tl.cast(part_rows, tl.int64) * DV + s_row
        tl.store(logs, tl.where(alive, log_sum, -float("inf")), mask=row_ok)
        tl.store(logs + part_rows, m, mask=row_ok)


_COMBINE_RUNTIME = [
    "sink", "lse", "max_logits", "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "s_q",
    "group", "tiles", "tiles_per_head", "splits", "part_rows",
]  # fmt: skip


@triton.jit(do_not_specialize=_COMBINE_RUNTIME)
def sparse_combine_kernel(
    scratch, sink, out, lse, max_logits, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    s_q, group, tiles, tiles_per_head, splits, part_rows,
    DV: tl.constexpr, H: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr, SB: tl.constexpr,
    SMAX: tl.constexpr, HAS_SINK: tl.constexpr, HAS_MAX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (queries, groups of RB heads, DV / CB): merges the splits of one query."""
    query = tl.program_id(0)
    head = tl.program_id(1) * RB + tl.arange(0, RB)
    head_kv = head // group
    rows = head % group
    row_ok = head_kv * tiles_per_head < tiles
    tile = head_kv * tiles_per_head + rows // H
    cols = tl.program_id(2) * CB + tl.arange(0, CB)
    if PDL:
        tl.extra.cuda.gdc_wait()
    acc, log_sum, alive = merge_splits(
        scratch, part_rows, query * splits, 1, splits, tile, rows % H, tiles, row_ok, cols,
        False, H, DV, RB, CB, SB,
    )  # fmt: skip
    top = log_sum
    if HAS_MAX:
        s = tl.arange(0, SMAX)
        at = tl.cast((query * splits + s)[:, None] * tiles + tile[None, :], tl.int64) * H
        at += (rows % H)[None, :]
        ok = (s < splits)[:, None] & row_ok[None, :]
        tops = scratch + tl.cast(part_rows, tl.int64) * (DV + 1) + at
        top = tl.max(tl.load(tops, mask=ok, other=-1e30), 0)
    _write(
        out, lse, max_logits, sink, acc, acc, log_sum, top, alive, query // s_q, query % s_q, head,
        cols, cols, row_ok, row_ok & (head * 0 + tl.program_id(2) == 0),
        out_b, out_t, out_h, lse_b, lse_h, lse_t, DV, False, HAS_SINK, HAS_MAX,
    )  # fmt: skip

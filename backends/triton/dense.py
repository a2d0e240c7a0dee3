"""Dense paged decode, plain Triton: one read of a KV tile serves as K and as V.

Strides of q, cache and out come in 16-byte vectors (8 elements): the multiplication by 8 in the
kernel is what tells the compiler that every row starts aligned. Everything else is unspecialised,
so that one KernelKey has one compiled kernel whatever the batch.
"""

import triton
import triton.language as tl

from flashmla_hub.backends.triton import softmax
from flashmla_hub.backends.triton.kv import e4m3_to_float, tensor_factor
from flashmla_hub.backends.triton.schedule import (
    chunk_blocks,
    clamp_length,
    part_range,
    request_blocks,
    request_range,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scores(qc, qr, kc, kr, scale, ROPE: tl.constexpr, BREAK: tl.constexpr):
    """Scores, and what they are still to be multiplied by."""
    if ROPE and BREAK:
        # Two chains (see config.Config.break_chain): the compiler joins bare products.
        s = tl.dot(qr, tl.trans(kr)) * scale + tl.dot(qc, tl.trans(kc)) * scale
        factor = 1.0
    else:
        s = tl.dot(qc, tl.trans(kc))
        factor = scale
        if ROPE:
            s = tl.dot(qr, tl.trans(kr), s)
    return s, factor


@triton.jit
def _page_of(row_table, i, last_page, tokens, N: tl.constexpr, PAGE: tl.constexpr):
    """Page id of block ``i``, one id for each token where a block spans pages. Ids past the last
    used page are never read: they may be anything."""
    if PAGE % N == 0:
        at = tl.minimum(i * N // PAGE, last_page)
    else:
        at = tl.minimum((i * N + tokens) // PAGE, last_page)
    return tl.load(row_table + at)


@triton.jit
def _block(
    qc, qr, m, total, acc, page, i, length, limit, scale,
    kv, kv_page, row, offset_c, offset_r, cols_c, cols_r, tokens,
    N: tl.constexpr, PAGE: tl.constexpr, DR: tl.constexpr, MASK: tl.constexpr,
    BREAK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Attend to block ``i``. MASK False: every token of the block is visible to every row."""
    n = i * N + tokens
    if PAGE % N == 0:  # one page for the whole block: a scalar base and a loop-invariant offset
        first = kv + tl.cast(page, tl.int64) * kv_page
        first += tl.cast((i % (PAGE // N)) * N, tl.int64) * row
        pc = first + offset_c
        pr = first + offset_r
    else:
        first = kv + tl.cast(page, tl.int64) * kv_page + tl.cast(n % PAGE, tl.int64) * row
        pc = first[:, None] + cols_c[None, :]
        pr = first[:, None] + cols_r[None, :]
    if MASK:  # unused slots may hold NaN, and 0 * NaN would reach the output through V
        ok = n < length
        kc = tl.load(pc, mask=ok[:, None], other=0.0)
        kr = tl.load(pr, mask=ok[:, None], other=0.0) if DR > 0 else kc
    else:
        kc = tl.load(pc)
        kr = tl.load(pr) if DR > 0 else kc
    return _attend(qc, qr, m, total, acc, kc, kr, n, length, limit, scale, DR, MASK, BREAK, SPREAD)


@triton.jit
def _attend(
    qc, qr, m, total, acc, kc, kr, n, length, limit, scale,
    DR: tl.constexpr, MASK: tl.constexpr, BREAK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Attend to the tile of the tokens ``n``."""
    x, scale = scores(qc, qr, kc, kr, scale, DR > 0, BREAK)
    if MASK:
        x = tl.where(n[None, :] < limit[:, None], x, -float("inf"))
    if BREAK:
        # Always true. Triton 3.6 and 3.7 lay out a dot whose result reaches another dot with all
        # warps along M; at 64 rows both warpgroups would then compute the whole score tile. The
        # analysis does not look through an `if`, and S becomes one half per warpgroup.
        if length > -1:
            p, alpha, m, total = softmax.step(x, scale, m, total, SPREAD)
            p = p.to(kc.dtype)
        else:
            p = x.to(kc.dtype)
            alpha = m
    else:
        p, alpha, m, total = softmax.step(x, scale, m, total, SPREAD)
        p = p.to(kc.dtype)
    acc = tl.dot(p, kc, acc * alpha[:, None])
    return m, total, acc


@triton.jit
def _bytes_of(
    page, i, stop, kv, kv_page, row, cols_c, cols_r, tokens,
    N: tl.constexpr, PAGE: tl.constexpr, DR: tl.constexpr,
):  # fmt: skip
    """The e4m3 tile of block ``i``, zeros from token ``stop`` on."""
    n = i * N + tokens
    first = kv + tl.cast(page, tl.int64) * kv_page + tl.cast(n % PAGE, tl.int64) * row
    ok = (n < stop)[:, None]
    kc = tl.load(first[:, None] + cols_c[None, :], mask=ok, other=0)
    kr = tl.load(first[:, None] + cols_r[None, :], mask=ok, other=0) if DR > 0 else kc
    return kc, kr


@triton.jit
def _fp8_blocks(
    qc, qr, m, total, acc, row_table, first, end, last_page, length, limit, scale, factor,
    kv, kv_page, row, cols_c, cols_r, tokens,
    N: tl.constexpr, PAGE: tl.constexpr, DR: tl.constexpr, BREAK: tl.constexpr,
    SPREAD: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Attend to blocks [first, end) of an e4m3 cache. Triton does not pipeline tiles that are
    converted: they are fetched a block ahead, into registers."""
    stop = tl.minimum(length, end * N)
    page = _page_of(row_table, first, last_page, tokens, N, PAGE)
    bytes_c, bytes_r = _bytes_of(
        page, first, stop, kv, kv_page, row, cols_c, cols_r, tokens, N, PAGE, DR
    )
    page = _page_of(row_table, first + 1, last_page, tokens, N, PAGE)
    for i in tl.range(first, end, num_stages=1):
        kc = (e4m3_to_float(bytes_c, HARDWARE) * factor).to(qc.dtype)
        kr = kc
        if DR > 0:
            kr = (e4m3_to_float(bytes_r, HARDWARE) * factor).to(qc.dtype)
        bytes_c, bytes_r = _bytes_of(
            page, i + 1, stop, kv, kv_page, row, cols_c, cols_r, tokens, N, PAGE, DR
        )
        page = _page_of(row_table, i + 2, last_page, tokens, N, PAGE)
        m, total, acc = _attend(
            qc, qr, m, total, acc, kc, kr, i * N + tokens, length, limit, scale,
            DR, True, BREAK, SPREAD,
        )  # fmt: skip
    return m, total, acc


_RUNTIME = [
    "table", "lens", "lse", "scale", "q_b", "q_t", "q_h", "kv_page", "kv_row", "kv_head", "table_b",
    "out_b", "out_t", "out_h", "lse_b", "lse_h", "lse_t", "batch", "s_q", "group", "tiles",
    "tiles_per_head", "parts", "capacity", "part_rows", "slot_stride", "descale", "scaled",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def dense_kernel(
    q, kv, table, lens, out, lse, scratch, scale,
    q_b, q_t, q_h, kv_page, kv_row, kv_head, table_b, out_b, out_t, out_h, lse_b, lse_h, lse_t,
    batch, s_q, group, tiles, tiles_per_head, parts, capacity, part_rows,
    slot_stride, descale, scaled,
    DV: tl.constexpr, DR: tl.constexpr, H: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr,
    BATCH: tl.constexpr, ROW: tl.constexpr, CAUSAL: tl.constexpr, STAGES: tl.constexpr,
    SPLIT_TAIL: tl.constexpr, BREAK: tl.constexpr, SPREAD: tl.constexpr, SLACK: tl.constexpr,
    STEP: tl.constexpr, INVARIANT: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr,
    PDL: tl.constexpr, FP8: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Program (part, row tile): the blocks of one part for H packed query rows.

    Row i of a KV head's tiles is token i // group, head i % group. A request covered whole by
    one segment is written out; any other segment leaves a normalised fp32 partial and its log2
    lse in ``scratch`` (part_rows rows of DV floats, then part_rows floats): in slot 2 * part + 1
    where it starts its request, else 2 * part, as a part has at most two such segments; with
    INVARIANT in slot request * slot_stride + chunk.
    FP8: the cache is e4m3, with one scale for all of it at ``descale`` where ``scaled`` is 1.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        if BATCH > 32:
            # The combine takes what room is left, plans and waits.
            tl.extra.cuda.gdc_launch_dependents()
    pid = tl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    idx, blocks = request_blocks(lens, batch, capacity, BATCH, N)
    lo, hi = part_range(idx, blocks, part, batch, parts, SLACK, STEP, INVARIANT)
    first, end, before = request_range(idx, blocks, lo, hi, batch)

    kv_head_id = tile // tiles_per_head
    rows = (tile % tiles_per_head) * H + tl.arange(0, H)
    row_ok = rows < s_q * group
    token = rows // group
    head = kv_head_id * group + rows % group
    cols = tl.arange(0, DV)
    cols_r = DV + tl.arange(0, DR if DR > 0 else 16)
    tokens = tl.arange(0, N)
    UNIT: tl.constexpr = 16 if FP8 else 8
    kv += tl.cast(kv_head_id, tl.int64) * kv_head * UNIT
    row = ROW if ROW > 0 else tl.cast(kv_row, tl.int64) * UNIT
    page_stride = tl.cast(kv_page, tl.int64) * UNIT
    offset_c = tokens[:, None] * row + cols[None, :]
    offset_r = tokens[:, None] * row + cols_r[None, :]

    for r in tl.range(first, end, num_stages=1):
        length = clamp_length(tl.load(lens + r), capacity)
        n_r = tl.maximum((length + N - 1) // N, 1)
        q_row = q + tl.cast(r, tl.int64) * q_b * 8
        q_row += (tl.cast(token, tl.int64) * q_t + tl.cast(head, tl.int64) * q_h) * 8
        qc = tl.load(q_row[:, None] + cols[None, :], mask=row_ok[:, None], other=0.0)
        qr = qc
        if DR > 0:
            qr = tl.load(q_row[:, None] + cols_r[None, :], mask=row_ok[:, None], other=0.0)
        factor = 1.0
        if FP8:
            factor = tensor_factor(descale, scaled)
        if CAUSAL:
            limit = tl.minimum(length - s_q + token + 1, length)
            shared = tl.maximum(length - s_q + 1, 0) // N
        else:
            limit = tl.zeros((H,), tl.int32) + length
            shared = length // N
        # A table may have no columns: an empty request reads its own length instead.
        row_table = tl.where(length > 0, table + tl.cast(r, tl.int64) * table_b, lens + r)
        last_page = tl.maximum((length + PAGE - 1) // PAGE - 1, 0)
        if INVARIANT:
            # Not carried from request to request: Triton (3.6 to 3.9) drops a loop-carried value
            # that only feeds the bounds of an inner loop, and every request would see the first.
            before = tl.sum(tl.where(idx < r, blocks, 0), 0)
            chunk = chunk_blocks(n_r, CHUNK, SPLITS)
            chunks = (n_r + chunk - 1) // chunk
            c0 = (tl.maximum(lo - before, 0) + chunk - 1) // chunk
            c1 = tl.minimum((hi - before + chunk - 1) // chunk, chunks)
        else:
            chunk = n_r
            c0 = 0
            c1 = 1
        for c in tl.range(c0, c1, num_stages=1):
            if INVARIANT:
                b0 = c * chunk
                b1 = tl.minimum(b0 + chunk, n_r)
            else:
                b0 = tl.maximum(lo - before, 0)
                b1 = tl.minimum(hi - before, n_r)
            stop = tl.minimum(b1, (length + N - 1) // N)  # the one block of an empty request: skip
            m, total = softmax.start(H, N, SPREAD)
            acc = tl.zeros((H, DV), tl.float32)
            if FP8:
                m, total, acc = _fp8_blocks(
                    qc, qr, m, total, acc, row_table, b0, stop, last_page, length, limit, scale,
                    factor, kv, page_stride, row, cols, cols_r, tokens,
                    N, PAGE, DR, BREAK, SPREAD, HARDWARE,
                )  # fmt: skip
            else:
                main = tl.maximum(tl.minimum(stop, shared), b0) if SPLIT_TAIL else stop
                # Page ids are carried one block ahead: a dependent load inside an iteration would
                # halve the depth of the pipeline.
                page = _page_of(row_table, b0, last_page, tokens, N, PAGE)
                for i in tl.range(b0, main, num_stages=STAGES):
                    here = page
                    page = _page_of(row_table, i + 1, last_page, tokens, N, PAGE)
                    m, total, acc = _block(
                        qc, qr, m, total, acc, here, i, length, limit, scale,
                        kv, page_stride, row, offset_c, offset_r, cols, cols_r, tokens,
                        N, PAGE, DR, not SPLIT_TAIL, BREAK, SPREAD,
                    )  # fmt: skip
                if SPLIT_TAIL:
                    for i in tl.range(main, stop, num_stages=1):
                        here = page
                        page = _page_of(row_table, i + 1, last_page, tokens, N, PAGE)
                        m, total, acc = _block(
                            qc, qr, m, total, acc, here, i, length, limit, scale,
                            kv, page_stride, row, offset_c, offset_r, cols, cols_r, tokens,
                            N, PAGE, DR, True, BREAK, SPREAD,
                        )  # fmt: skip
            if PDL and BATCH <= 32:
                # In a small batch the combine has much to do, and would crowd on the
                # multiprocessors that finish first if it came before.
                tl.extra.cuda.gdc_launch_dependents()
            inv, log_sum, alive = softmax.finish(m, total, SPREAD)
            o = acc * inv[:, None]
            if (b0 == 0) & (b1 == n_r):
                o_row = out + tl.cast(r, tl.int64) * out_b * 8
                o_row += (tl.cast(token, tl.int64) * out_t + tl.cast(head, tl.int64) * out_h) * 8
                o_at = o_row[:, None] + cols[None, :]
                tl.store(o_at, o.to(out.dtype.element_ty), mask=row_ok[:, None])
                l_at = lse + tl.cast(r, tl.int64) * lse_b
                l_at += tl.cast(head, tl.int64) * lse_h + tl.cast(token, tl.int64) * lse_t
                tl.store(l_at, tl.where(alive, log_sum * LN2, float("inf")), mask=row_ok)
            else:
                slot = r * slot_stride + c if INVARIANT else part * 2 + (b0 == 0).to(tl.int32)
                s_row = tl.cast(slot * tiles + tile, tl.int64) * H + tl.arange(0, H)
                s_at = scratch + s_row[:, None] * DV + cols[None, :]
                tl.store(s_at, o, mask=row_ok[:, None])
                l_at = scratch + tl.cast(part_rows, tl.int64) * DV + s_row
                tl.store(l_at, tl.where(alive, log_sum, -float("inf")), mask=row_ok)
        if not INVARIANT:
            before += n_r

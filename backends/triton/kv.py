"""Reading scattered tokens of a cache, in any layout, as a tile of K.

A tile has up to two parts: ``kc`` (N, DV), the columns that also are V, and ``kr`` (N, 64), the
rope columns. In the layout "model1" the rope part is V too; there ``kc`` has 448 columns, and
zeros after them.
"""

import triton
import triton.language as tl


@triton.jit
def e4m3_to_float(bits, HARDWARE: tl.constexpr):
    """float32 of e4m3fn bytes. Without a conversion in hardware, an e4m3 shifted into a float16
    is its value times 2**-8, subnormals included; only NaN (0x7F) needs a select."""
    if HARDWARE:
        value = bits.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        wide = bits.to(tl.uint16)
        half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        value = tl.where((wide & 0x7F) == 0x7F, float("nan"), value)
    return value


@triton.jit
def ue8m0_to_float(exponent):
    """float32 2**(exponent - 127); 0 is 2**-127, 255 is NaN."""
    e = exponent.to(tl.uint32)
    bits = tl.where(e == 0, 0x400000, e << 23)
    return tl.where(e == 255, 0x7FC00000, bits).to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def load_slots(indices, at, count, slots, PAGE: tl.constexpr, PAGED: tl.constexpr):
    """Slots of the entries ``at``; -1 for entries past ``count``, negative or past the cache.

    PAGED: ``indices`` is a row of the block table, and the entries are a request's tokens.
    """
    if PAGED:
        page = tl.load(indices + at // PAGE, mask=at < count, other=0)
        slot = tl.where(at < count, page * PAGE + at % PAGE, -1)
    else:
        slot = tl.load(indices + at, mask=at < count, other=-1)
    return tl.where((slot >= 0) & (slot < slots), slot, -1)


@triton.jit
def fetch(
    cache, slot, page_stride, row_stride, cols, cols_r,
    FORMAT: tl.constexpr, PAGE: tl.constexpr, DV: tl.constexpr, DR: tl.constexpr,
):  # fmt: skip
    """The stored parts ``(values, scales, rope)`` of the tokens in ``slot``; zeros where it is -1,
    which also keeps NaN in unused slots away from V. Strides in elements of the cache (bytes for
    the FP8 layouts). A part that the layout lacks repeats another one."""
    ok = slot >= 0
    safe = tl.maximum(slot, 0)
    page = cache + tl.cast(safe // PAGE, tl.int64) * page_stride
    if FORMAT == "dense":
        token = page + tl.cast(safe % PAGE, tl.int64) * row_stride
        values = tl.load(token[:, None] + cols[None, :], mask=ok[:, None], other=0.0)
        scales = values
        rope = values
        if DR > 0:
            rope = tl.load(token[:, None] + (DV + cols_r)[None, :], mask=ok[:, None], other=0.0)
    elif FORMAT == "v32":
        token = page + tl.cast(safe % PAGE, tl.int64) * row_stride
        values = tl.load(token[:, None] + cols[None, :], mask=ok[:, None], other=0)
        at = (token + 512).to(tl.pointer_type(tl.float32))[:, None] + tl.arange(0, 4)[None, :]
        scales = tl.load(at, mask=ok[:, None], other=0.0)
        at = (token + 528).to(tl.pointer_type(tl.bfloat16))[:, None] + cols_r[None, :]
        rope = tl.load(at, mask=ok[:, None], other=0.0)
    else:
        tl.static_assert(FORMAT == "model1")
        token = page + (safe % PAGE) * 576
        nope = ok[:, None] & (cols < 448)[None, :]
        values = tl.load(token[:, None] + cols[None, :], mask=nope, other=0)
        group = tl.arange(0, 8)
        at = page[:, None] + (PAGE * 576 + (safe % PAGE)[:, None] * 8 + group[None, :])
        scales = tl.load(at, mask=ok[:, None] & (group < 7)[None, :], other=0)
        at = (token + 448).to(tl.pointer_type(tl.bfloat16))[:, None] + cols_r[None, :]
        rope = tl.load(at, mask=ok[:, None], other=0.0)
    return values, scales, rope


@triton.jit
def prefetch(
    indices, i, count, slots, cache, page_stride, row_stride,
    FORMAT: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """Bring the FP8 tokens of block ``i`` to L2, a quarter of one for each thread (sm_90)."""
    lane = tl.arange(0, 4 * N)
    slot = load_slots(indices, i * N + lane % N, count, slots, PAGE, PAGED)
    ok = (slot >= 0).to(tl.int32)
    safe = tl.maximum(slot, 0)
    STRIDE: tl.constexpr = 160 if FORMAT == "v32" else 144
    BYTES: tl.constexpr = "176" if FORMAT == "v32" else "144"
    at = cache + tl.cast(safe // PAGE, tl.int64) * page_stride + (lane // N) * STRIDE
    if FORMAT == "v32":
        at += tl.cast(safe % PAGE, tl.int64) * row_stride
    else:
        at += (safe % PAGE) * 576
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], "
        + BYTES
        + "; mov.u32 $0, 0; }",
        "=r,l,r", [at.to(tl.int64), ok], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def dequantize(
    values, scales, FORMAT: tl.constexpr, N: tl.constexpr, DV: tl.constexpr,
    HARDWARE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """``kc`` of a fetched tile: e4m3 times scale in float32, rounded once."""
    if FORMAT == "dense":
        kc = values
    elif FORMAT == "v32":
        grouped = tl.reshape(e4m3_to_float(values, HARDWARE), (N, 4, DV // 4))
        kc = tl.reshape(grouped * scales[:, :, None], (N, DV)).to(dtype)
    else:
        grouped = tl.reshape(e4m3_to_float(values, HARDWARE), (N, 8, DV // 8))
        kc = tl.reshape(grouped * ue8m0_to_float(scales)[:, :, None], (N, DV)).to(dtype)
    return kc

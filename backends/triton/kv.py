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
def e2m1_to_float(code):
    """float32 of e2m1 in the low nibble: a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    c = code.to(tl.uint32)
    exponent = (c >> 1) & 3
    mantissa = c & 1
    bits = tl.where(exponent == 0, mantissa * 0x3F000000, ((exponent + 126) << 23) | mantissa << 22)
    return (bits | ((c & 8) << 28)).to(tl.float32, bitcast=True)


@triton.jit
def rope_of(rope, factor, FORMAT: tl.constexpr, HARDWARE: tl.constexpr, dtype: tl.constexpr):
    """``kr`` of a fetched tile."""
    if FORMAT == "fp8":
        kr = (e4m3_to_float(rope, HARDWARE) * factor).to(dtype)
    else:
        kr = rope
    return kr


@triton.jit
def tensor_factor(descale, scaled):
    """The scale of a whole cache: 1 where ``scaled`` is 0."""
    return tl.load(descale, mask=scaled > 0, other=1.0)


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
def load_float32(at, index, mask, UNIT: tl.constexpr):
    """The little-endian float32 values ``index`` from the byte addresses ``at`` on, multiples of
    UNIT."""
    if UNIT >= 4:
        words = at.to(tl.pointer_type(tl.float32))
        value = tl.load(words[:, None] + index[None, :], mask=mask, other=0.0)
    else:
        at = at[:, None] + 4 * index[None, :]
        bits = tl.load(at, mask=mask, other=0).to(tl.uint32)
        for byte in tl.static_range(1, 4):
            bits |= tl.load(at + byte, mask=mask, other=0).to(tl.uint32) << (8 * byte)
        value = bits.to(tl.float32, bitcast=True)
    return value


@triton.jit
def load_bfloat16(at, index, mask, UNIT: tl.constexpr):
    """As load_float32, of bfloat16 values."""
    if UNIT >= 2:
        halves = at.to(tl.pointer_type(tl.bfloat16))
        value = tl.load(halves[:, None] + index[None, :], mask=mask, other=0.0)
    else:
        at = at[:, None] + 2 * index[None, :]
        low = tl.load(at, mask=mask, other=0).to(tl.uint16)
        high = tl.load(at + 1, mask=mask, other=0).to(tl.uint16)
        value = (low | (high << 8)).to(tl.bfloat16, bitcast=True)
    return value


@triton.jit
def fetch(
    cache, slot, page_stride, row_stride, cols, cols_r,
    FORMAT: tl.constexpr, PAGE: tl.constexpr, DV: tl.constexpr, DR: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """The stored parts ``(values, scales, rope)`` of the tokens in ``slot``; zeros where it is -1,
    which also keeps NaN in unused slots away from V. Strides in elements of the cache (bytes for
    the FP8 layouts), which address multiples of UNIT elements. A part that the layout lacks
    repeats another one."""
    ok = slot >= 0
    safe = tl.maximum(slot, 0)
    page = cache + tl.cast(safe // PAGE, tl.int64) * page_stride
    offset = safe % PAGE
    if FORMAT == "dense":
        token = page + tl.cast(offset, tl.int64) * row_stride
        values = tl.load(token[:, None] + cols[None, :], mask=ok[:, None], other=0.0)
        scales = values
        rope = values
        if DR > 0:
            rope = tl.load(token[:, None] + (DV + cols_r)[None, :], mask=ok[:, None], other=0.0)
    elif FORMAT != "model1":
        token = page + tl.cast(offset, tl.int64) * row_stride
        if UNIT < 16:
            token = tl.multiple_of(token, UNIT)
        wide = token[:, None]
        if FORMAT == "v41_fp4":  # two values to a byte
            half = tl.arange(0, DV // 2)
            values = tl.load(wide + half[None, :], mask=ok[:, None], other=0)
            group = tl.arange(0, DV // 16)
            scales = tl.load(wide + (DV // 2 + group)[None, :], mask=ok[:, None], other=0)
        else:
            values = tl.load(wide + cols[None, :], mask=ok[:, None], other=0)
            scales = values
        rope = values
        if FORMAT == "v41":
            group = tl.arange(0, 16)
            scales = tl.load(wide + (512 + group)[None, :], mask=ok[:, None], other=0)
        elif (FORMAT == "v32") | (FORMAT == "v32_no_rope"):
            scales = load_float32(token + 512, tl.arange(0, 4), ok[:, None], UNIT)
            if DR > 0:
                rope = load_bfloat16(token + 528, cols_r, ok[:, None], UNIT)
        elif (FORMAT == "fp8") & (DR > 0):
            rope = tl.load(wide + (DV + cols_r)[None, :], mask=ok[:, None], other=0)
    else:
        if PAGE > 3_000_000:  # the bytes of a page pass 2**31
            offset = tl.cast(offset, tl.int64)
        token = page + offset * 576
        if UNIT < 16:
            token = tl.multiple_of(token, UNIT)
        nope = ok[:, None] & (cols < 448)[None, :]
        values = tl.load(token[:, None] + cols[None, :], mask=nope, other=0)
        group = tl.arange(0, 8)
        at = page[:, None] + (PAGE * 576 + offset[:, None] * 8 + group[None, :])
        scales = tl.load(at, mask=ok[:, None] & (group < 7)[None, :], other=0)
        rope = load_bfloat16(token + 448, cols_r, ok[:, None], UNIT)
    return values, scales, rope


@triton.jit
def prefetch(
    indices, i, count, slots, cache, page_stride, row_stride,
    FORMAT: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr, PAGED: tl.constexpr,
    DR: tl.constexpr,
):  # fmt: skip
    """Bring the FP8 tokens of block ``i`` to L2, a quarter of one for each thread (sm_90; tokens
    start at multiples of 16 bytes)."""
    lane = tl.arange(0, 4 * N)
    slot = load_slots(indices, i * N + lane % N, count, slots, PAGE, PAGED)
    ok = (slot >= 0).to(tl.int32)
    safe = tl.maximum(slot, 0)
    # Four reads that cover a token, each of whole 16-byte units.
    if FORMAT == "v32":
        STRIDE: tl.constexpr = 160
        BYTES: tl.constexpr = "176"
    elif FORMAT == "v41_fp4":
        STRIDE: tl.constexpr = 64
        BYTES: tl.constexpr = "96"
    elif (FORMAT == "v41") | (FORMAT == "v32_no_rope"):
        STRIDE: tl.constexpr = 128
        BYTES: tl.constexpr = "144"
    elif (FORMAT == "fp8") & (DR == 0):
        STRIDE: tl.constexpr = 128
        BYTES: tl.constexpr = "128"
    else:
        STRIDE: tl.constexpr = 144
        BYTES: tl.constexpr = "144"
    at = cache + tl.cast(safe // PAGE, tl.int64) * page_stride + (lane // N) * STRIDE
    if FORMAT != "model1":
        at += tl.cast(safe % PAGE, tl.int64) * row_stride
    else:
        at += tl.cast(safe % PAGE, tl.int64) * 576
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], "
        + BYTES
        + "; mov.u32 $0, 0; }",
        "=r,l,r", [at.to(tl.int64), ok], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def dequantize(
    values, scales, factor, FORMAT: tl.constexpr, N: tl.constexpr, DV: tl.constexpr,
    HARDWARE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """``kc`` of a fetched tile: value times scale in float32, rounded once. ``factor`` is the
    scale of a whole cache ("fp8")."""
    if FORMAT == "dense":
        kc = values
    elif FORMAT == "fp8":
        kc = (e4m3_to_float(values, HARDWARE) * factor).to(dtype)
    elif FORMAT == "v41":
        grouped = tl.reshape(e4m3_to_float(values, HARDWARE), (N, 16, DV // 16))
        kc = tl.reshape(grouped * ue8m0_to_float(scales)[:, :, None], (N, DV)).to(dtype)
    elif FORMAT == "v41_fp4":
        pairs = tl.join(e2m1_to_float(values & 15), e2m1_to_float(values >> 4))
        grouped = tl.reshape(pairs, (N, DV // 16, 16))
        scale = e4m3_to_float(scales, HARDWARE)
        kc = tl.reshape(grouped * scale[:, :, None], (N, DV)).to(dtype)
    elif (FORMAT == "v32") | (FORMAT == "v32_no_rope"):
        grouped = tl.reshape(e4m3_to_float(values, HARDWARE), (N, 4, DV // 4))
        kc = tl.reshape(grouped * scales[:, :, None], (N, DV)).to(dtype)
    else:
        grouped = tl.reshape(e4m3_to_float(values, HARDWARE), (N, 8, DV // 8))
        kc = tl.reshape(grouped * ue8m0_to_float(scales)[:, :, None], (N, DV)).to(dtype)
    return kc

"""Listed tokens for the Hopper Gluon kernel of the sparse ops: items of work, and filling tiles.

Unquantised tokens are copied with cp.async by the warpgroup that freed their place. FP8 ones
(layout v32) go through the registers of a warpgroup of their own, :func:`producer`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from flashmla_hub.backends.triton.gluon_tiles import as_words, barrier, load_rows

# Four rows of 128 bytes an instruction: a thread needs the addresses of few rows.
COPY = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
COPY_ROWS = gl.constexpr(gl.SliceLayout(1, COPY))
# 32-bit words, four of a row for each thread: as separate bytes, values that are kept for a while
# would take a register each.
WORDS = gl.constexpr(gl.BlockedLayout([1, 4], [8, 4], [4, 1], [1, 0]))
WORD_ROWS = gl.constexpr(gl.SliceLayout(1, WORDS))
WORDS_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 32, rank=2))


@gluon.jit
def item_of(
    item, tiles, splits, s_q, indices, index_b, index_t, counts, topk, COUNTS: gl.constexpr
):  # fmt: skip
    """Request, token, part and row tile of an item, its list, the list's length, and the pairs of
    blocks [lo, hi) of its part: one at least, to own its output."""
    tile = item % tiles
    part = item // tiles
    split = part % splits
    query = part // splits
    b = query // s_q
    t = query % s_q
    count = topk
    if COUNTS:
        count = gl.minimum(gl.maximum(gl.load(counts + b), 0), topk)
    pairs = (count + 127) // 128
    per_split = gl.maximum((pairs + splits - 1) // splits, 1)
    lo = split * per_split
    hi = gl.maximum(gl.minimum(lo + per_split, pairs), lo + 1)
    entries = indices + b.to(gl.int64) * index_b + t.to(gl.int64) * index_t
    return b, t, part, tile, entries, count, lo, hi


@gluon.jit
def listed(entries, block, count, slots, LAYOUT: gl.constexpr):
    """Slots of block ``block`` of a list, below 0 where there is no token: past ``count``, not
    used, or past the cache."""
    n = block * 64 + gl.arange(0, 64, layout=LAYOUT)
    slot = gl.load(entries + n, mask=n < count, other=-1)
    return gl.where(slot < slots, slot, -1)


@gluon.jit
def _rows(kv, kv_page, kv_row, slot, UNIT: gl.constexpr, PAGE: gl.constexpr):
    """Where the tokens in ``slot`` are; strides in units of UNIT elements."""
    safe = gl.maximum(slot, 0)
    at = (safe // PAGE).to(gl.int64) * kv_page + (safe % PAGE).to(gl.int64) * kv_row
    return kv + at * UNIT


@gluon.jit
def gather(
    kv, kv_page, kv_row, slot, halves, ropes, full,
    PAGE: gl.constexpr, T: gl.constexpr, RIGHT: gl.constexpr,
):  # fmt: skip
    """Start the copy of one half of tile T of a pair, the right one with the rope columns; tokens
    that are not there become 0."""
    ok = (slot >= 0)[:, None]
    at = _rows(kv, kv_page, kv_row, slot, 8, PAGE)[:, None]
    cols = RIGHT * 256 + gl.arange(0, 256, layout=gl.SliceLayout(0, COPY))
    load_rows(halves.index(T), at + cols[None, :], mask=ok)
    if RIGHT:
        cols_r = 512 + gl.arange(0, 64, layout=gl.SliceLayout(0, COPY))
        load_rows(ropes.index(T), at + cols_r[None, :], mask=ok)
    async_copy.mbarrier_arrive(full.index(2 * T + RIGHT), increment_count=False)


@gluon.jit
def _half(pool, slot, PAGE: gl.constexpr, RIGHT: gl.constexpr):
    """Where one half of the tokens in ``slot`` of an FP8 cache is (512 bytes of e4m3, four float32
    scales, 64 rope columns): its words, scales and rope words; and which there are."""
    kv, kv_page, kv_row = pool
    at = _rows(kv, kv_page, kv_row, slot, 16, PAGE)
    cols = gl.arange(0, 16, layout=gl.SliceLayout(0, WORDS))
    cols_r = gl.arange(0, 32, layout=gl.SliceLayout(0, WORDS))
    words = (at + RIGHT * 256).to(gl.pointer_type(gl.int32))[:, None] + cols[None, :]
    scales = (at + (512 + RIGHT * 8)).to(gl.pointer_type(gl.float32))
    rope = (at + 528).to(gl.pointer_type(gl.int32))[:, None] + cols_r[None, :]
    return words, scales, rope, slot >= 0


@gluon.jit
def _fetch(pool, slot, PAGE: gl.constexpr):
    """The left half of a tile, into registers."""
    words, scales, _, ok = _half(pool, slot, PAGE, 0)
    wide = ok[:, None]
    v_0 = gl.load(words, mask=wide, other=0)
    v_1 = gl.load(words + 16, mask=wide, other=0)
    v_2 = gl.load(words + 32, mask=wide, other=0)
    v_3 = gl.load(words + 48, mask=wide, other=0)
    scale_0 = gl.load(scales, mask=ok, other=0.0)
    scale_1 = gl.load(scales + 1, mask=ok, other=0.0)
    rope = gl.zeros([64, 32], gl.int32, layout=WORDS)
    return v_0, v_1, v_2, v_3, scale_0, scale_1, rope


@gluon.jit
def _dequantize(words, scale, panel):
    """64 columns, four to a word: e4m3 times scale in float32, rounded once to bfloat16."""
    a, b = gl.inline_asm_elementwise(
        """{
        .reg .b16 lo, hi, a, b, c, d; .reg .b32 ab, cd; .reg .f32 fa, fb, fc, fd;
        mov.b32 {lo, hi}, $2;
        cvt.rn.f16x2.e4m3x2 ab, lo; cvt.rn.f16x2.e4m3x2 cd, hi;
        mov.b32 {a, b}, ab; mov.b32 {c, d}, cd;
        cvt.f32.f16 fa, a; cvt.f32.f16 fb, b; cvt.f32.f16 fc, c; cvt.f32.f16 fd, d;
        mul.f32 fa, fa, $3; mul.f32 fb, fb, $3; mul.f32 fc, fc, $3; mul.f32 fd, fd, $3;
        cvt.rn.bf16x2.f32 $0, fb, fa; cvt.rn.bf16x2.f32 $1, fd, fc;
        }""",
        "=r,=r,r,f", [words, scale[:, None]], dtype=(gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    panel.store(gl.join(a, b).reshape([64, 32]))


@gluon.jit
def _refill(
    held, pool, slot, halves, ropes, full, empty, phase,
    PAGE: gl.constexpr, T: gl.constexpr, RIGHT: gl.constexpr,
):  # fmt: skip
    """Fill one half of tile T of a pair with what is held in registers, and fetch into them, as
    they come free, the other half of the tokens in ``slot``, which is what comes next."""
    v_0, v_1, v_2, v_3, scale_0, scale_1, rope = held
    words, scales, rope_at, ok = _half(pool, slot, PAGE, 1 - RIGHT)
    wide = ok[:, None]
    next_0 = gl.load(scales, mask=ok, other=0.0)
    next_1 = gl.load(scales + 1, mask=ok, other=0.0)
    mbarrier.wait(empty.index(2 * T + RIGHT), phase ^ 1)
    panels = as_words(halves, 8, WORDS_SHARED)
    _dequantize(v_0, scale_0, panels.index(4 * T))
    v_0 = gl.load(words, mask=wide, other=0)
    _dequantize(v_1, scale_0, panels.index(4 * T + 1))
    v_1 = gl.load(words + 16, mask=wide, other=0)
    _dequantize(v_2, scale_1, panels.index(4 * T + 2))
    v_2 = gl.load(words + 32, mask=wide, other=0)
    _dequantize(v_3, scale_1, panels.index(4 * T + 3))
    v_3 = gl.load(words + 48, mask=wide, other=0)
    if RIGHT:
        as_words(ropes, 2, WORDS_SHARED).index(T).store(rope)
    else:
        rope = gl.load(rope_at, mask=wide, other=0)
    barrier()  # the fence is the readers': here it would wait for what is being fetched
    mbarrier.arrive(full.index(2 * T + RIGHT), count=1)
    return v_0, v_1, v_2, v_3, next_0, next_1, rope


@gluon.jit
def producer(
    kv, indices, counts, kv_page, kv_row, index_b, index_t, items, tiles, splits, s_q, topk, slots,
    left, right, ropes, full, empty, COUNTS: gl.constexpr, PAGE: gl.constexpr,
):  # fmt: skip
    """Fills the tiles of an FP8 cache, in the order in which their halves are freed."""
    pool = (kv, kv_page, kv_row)
    pairs = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        _, _, _, _, entries, count, lo, hi = item_of(
            item, tiles, splits, s_q, indices, index_b, index_t, counts, topk, COUNTS
        )
        a = listed(entries, 2 * lo, count, slots, WORD_ROWS)
        b = listed(entries, 2 * lo + 1, count, slots, WORD_ROWS)
        held = _fetch(pool, a, PAGE)
        for i in range(lo, hi):
            phase = pairs & 1
            next_a = listed(entries, 2 * i + 2, count, slots, WORD_ROWS)
            next_b = listed(entries, 2 * i + 3, count, slots, WORD_ROWS)
            held = _refill(held, pool, b, left, ropes, full, empty, phase, PAGE, 0, 0)
            held = _refill(held, pool, b, right, ropes, full, empty, phase, PAGE, 1, 1)
            held = _refill(held, pool, a, left, ropes, full, empty, phase, PAGE, 1, 0)
            a = next_a
            b = next_b
            held = _refill(held, pool, a, right, ropes, full, empty, phase, PAGE, 0, 1)
            pairs += 1

"""One pair of 64-token tiles for two warpgroups: what the Hopper kernels with wgmma rows share.

Each warpgroup scores its own tile of the pair, and both then add both tiles to their own half of
the output columns; maxima and weights cross through shared memory. Warpgroup W owns tile W for
scores and output columns [256 W, 256 W + 256). A pair takes :func:`scores`, the kernel's mask,
:func:`add_first`, a refill, :func:`add_second`, a refill.

COPIED: tiles come by cp.async instead of TMA, and a fence must order them before a product.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from flashmla_hub.backends.triton.gluon_tiles import barrier, zero_rows

S = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
O = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))  # noqa: E741
Q_ROPE = gl.constexpr(gl.DotOperandLayout(0, S, 2))
P = gl.constexpr(gl.DotOperandLayout(0, O, 2))
ROW = gl.constexpr(gl.SliceLayout(1, S))
SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
FLAT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))


@gluon.jit
def allocate(dtype: gl.constexpr, FILLERS: gl.constexpr):
    """Shared memory of the pair: query halves, tile halves, rope columns, weights, maxima, sums;
    barriers of the half tiles (by 2 * tile + half, signalled FILLERS times when full), and of the
    warpgroups' turns: maxima of the first, weights of the second, of the first, query, sums."""
    q_left = gl.allocate_shared_memory(dtype, [1, 64, 256], SHARED)
    q_right = gl.allocate_shared_memory(dtype, [1, 64, 256], SHARED)
    left = gl.allocate_shared_memory(dtype, [2, 64, 256], SHARED)
    right = gl.allocate_shared_memory(dtype, [2, 64, 256], SHARED)
    ropes = gl.allocate_shared_memory(dtype, [2, 64, 64], SHARED)
    ps = gl.allocate_shared_memory(dtype, [2, 64, 64], SHARED)
    maxima = gl.allocate_shared_memory(gl.float32, [2, 64], FLAT)
    sums = gl.allocate_shared_memory(gl.float32, [2, 64], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [5, 1], mbarrier.MBarrierLayout())
    for j in gl.static_range(4):
        mbarrier.init(full.index(j), count=FILLERS)
    for j in gl.static_range(5):
        mbarrier.init(turn.index(j), count=1 if j < 3 else 2)
    return q_left, q_right, left, right, ropes, ps, maxima, sums, full, turn


@gluon.jit
def load_query(
    base, q_t, q_h, tile, group, visible, q_left, q_right, turn, phase, W: gl.constexpr
):  # fmt: skip
    """The query tile at ``base``: a half into shared memory by each warpgroup, whose rope columns
    are returned, in registers. Row i is token i // group, head i % group."""
    rows = tile * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, WIDE))
    cols = W * 256 + gl.arange(0, 256, layout=gl.SliceLayout(0, WIDE))
    at = ((rows // group).to(gl.int64) * q_t + (rows % group).to(gl.int64) * q_h) * 8
    ok = (rows < visible)[:, None]
    half = gl.load(base + at[:, None] + cols[None, :], mask=ok, other=0.0)
    if W == 0:
        q_left.index(0).store(half)
    else:
        q_right.index(0).store(half)
    rows = tile * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, Q_ROPE))
    cols = 512 + gl.arange(0, 64, layout=gl.SliceLayout(0, Q_ROPE))
    at = ((rows // group).to(gl.int64) * q_t + (rows % group).to(gl.int64) * q_h) * 8
    ok = (rows < visible)[:, None]
    rope = gl.load(base + at[:, None] + cols[None, :], mask=ok, other=0.0)
    fence_async_shared()
    barrier()
    mbarrier.arrive(turn.index(3), count=1)
    mbarrier.wait(turn.index(3), phase)
    return rope


@gluon.jit
def sum_of_both(total, sums, turn, phase, W: gl.constexpr):
    """The sum of weights, of which each warpgroup has those of its own tiles."""
    sums.index(W).store(total)
    barrier()
    mbarrier.arrive(turn.index(4), count=1)
    mbarrier.wait(turn.index(4), phase)
    return total + sums.index(1 - W).load(ROW)


@gluon.jit
def arrived(full, j, phase, COPIED: gl.constexpr):
    """Wait for half tile ``j`` of a pair: 2 * tile + half."""
    mbarrier.wait(full.index(j), phase)
    if COPIED:
        fence_async_shared()


@gluon.jit
def scores(
    q_left, q_right, q_rope, left, right, ropes, full, phase, z,
    W: gl.constexpr, COPIED: gl.constexpr,
):  # fmt: skip
    """Start on the scores of the warpgroup's own tile, with the half that is refilled first."""
    k_left = left.index(z + W).permute((1, 0))
    k_right = right.index(z + W).permute((1, 0))
    q_l = q_left.index(z)
    q_r = q_right.index(z)
    s = gl.zeros([64, 64], gl.float32, layout=S)
    if W == 0:
        arrived(full, 0, phase, COPIED)
        s = warpgroup_mma(q_l, k_left, s, use_acc=False, is_async=True)
        arrived(full, 1, phase, COPIED)
        s = warpgroup_mma(q_r, k_right, s, is_async=True)
    else:
        arrived(full, 3, phase, COPIED)
        s = warpgroup_mma(q_r, k_right, s, use_acc=False, is_async=True)
        arrived(full, 2, phase, COPIED)
        s = warpgroup_mma(q_l, k_left, s, is_async=True)
    return warpgroup_mma(q_rope, ropes.index(z + W).permute((1, 0)), s, is_async=True)


@gluon.jit
def add_first(
    s, scale, m, total, o, halves, ps, maxima, full, turn, phase, z, ragged, kept,
    W: gl.constexpr, COPIED: gl.constexpr,
):  # fmt: skip
    """Weights of masked scores ``s``, exchanged with the other warpgroup, and the first product:
    afterwards the own half of tile W may be refilled. Where ``ragged``, slots of the pair from
    token ``kept`` on are zeroed before use. Returns o, the running maximum and sum, and what o is
    still to be multiplied by."""
    max_0 = turn.index(0)
    p_1 = turn.index(1)
    p_0 = turn.index(2)
    dtype: gl.constexpr = halves.dtype
    top = gl.max(s, 1) * scale  # scale > 0
    if W == 0:
        m_0 = gl.maximum(m, top)
        maxima.index(0).store(m_0)
        barrier()
        mbarrier.arrive(max_0, count=1)
        p = gl.exp2(s * scale - m_0[:, None])
        alpha = gl.exp2(m - m_0)
        o = o * gl.convert_layout(alpha, gl.SliceLayout(1, O))[:, None]
        if ragged:
            arrived(full, 2, phase, COPIED)
            zero_rows(halves, kept, SHARED)
        own = gl.convert_layout(p.to(dtype), P)
        o = warpgroup_mma(own, halves.index(z), o, is_async=True)
        total = total * alpha + gl.sum(p, 1)  # while the tensor cores work
        mbarrier.wait(p_1, phase)
        m = maxima.index(1).load(ROW)
        alpha = gl.exp2(m_0 - m)
        total = total * alpha
        ps.index(0).store((p * alpha[:, None]).to(dtype))
        fence_async_shared()
        barrier()
        mbarrier.arrive(p_0, count=1)
        o = warpgroup_mma_wait(0, deps=(o,))
    else:
        mbarrier.wait(max_0, phase)
        new = gl.maximum(maxima.index(0).load(ROW), top)
        p = gl.exp2(s * scale - new[:, None])
        alpha = gl.exp2(m - new)
        m = new
        maxima.index(1).store(new)
        narrowed = p.to(dtype)
        ps.index(1).store(narrowed)
        fence_async_shared()
        barrier()
        mbarrier.arrive(p_1, count=1)
        o = o * gl.convert_layout(alpha, gl.SliceLayout(1, O))[:, None]
        if ragged:
            arrived(full, 1, phase, COPIED)
            zero_rows(halves, kept, SHARED)
        own = gl.convert_layout(narrowed, P)
        o = warpgroup_mma(own, halves.index(z + 1), o, is_async=True)
        total = total * alpha + gl.sum(p, 1)
        arrived(full, 1, phase, COPIED)
        mbarrier.wait(p_0, phase)
        o = warpgroup_mma(ps.index(0), halves.index(z), o, is_async=True)
        o = warpgroup_mma_wait(1, deps=(o,))
    barrier()
    return o, m, total, alpha


@gluon.jit
def add_second(o, alpha, halves, ps, full, phase, z, W: gl.constexpr, COPIED: gl.constexpr):
    """The second product: afterwards the own half of the other tile may be refilled."""
    if W == 0:
        o = o * gl.convert_layout(alpha, gl.SliceLayout(1, O))[:, None]
        arrived(full, 2, phase, COPIED)
        o = warpgroup_mma(ps.index(1), halves.index(z + 1), o, is_async=True)
    o = warpgroup_mma_wait(0, deps=(o,))
    barrier()
    return o

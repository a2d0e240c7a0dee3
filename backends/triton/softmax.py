"""The online softmax over one block of scores, in base 2."""

import triton
import triton.language as tl


@triton.jit
def start(H: tl.constexpr, N: tl.constexpr, SPREAD: tl.constexpr):
    """Running maximum and sum. A finite start keeps rows without a visible key free of NaN:
    all their weights are exp2(-inf) = 0."""
    m = tl.full((H,), -1e30, tl.float32)
    total = tl.zeros((H, N), tl.float32) if SPREAD else tl.zeros((H,), tl.float32)
    return m, total


@triton.jit
def step(x, scale, m, total, SPREAD: tl.constexpr):
    """Weights of scores ``x * scale`` (log2 units), the rescale of what came before, and the new
    state. ``scale`` is above 0: the largest x is the largest score, and the product becomes part
    of the subtraction.

    SPREAD keeps the sum per column and adds up once at the end: no cross-lane work in the loop.
    """
    new = tl.maximum(m, tl.max(x, 1) * scale)
    p = tl.exp2(x * scale - new[:, None])
    alpha = tl.exp2(m - new)
    if SPREAD:
        total = total * alpha[:, None] + p
    else:
        total = total * alpha + tl.sum(p, 1)
    return p, alpha, new, total


@triton.jit
def finish(m, total, SPREAD: tl.constexpr):
    """1 / sum (0 where no key was visible), log2 of the sum of exponentials, and the mask."""
    if SPREAD:
        total = tl.sum(total, 1)
    alive = total > 0
    return tl.where(alive, 1.0 / total, 0.0), m + tl.log2(total), alive

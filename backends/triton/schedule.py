"""Device-side work split: which blocks of which requests a program owns.

Every program reads all lengths once and derives the same plan, so there is no metadata kernel
and no host synchronisation. A *block* is N tokens of one request; the blocks of all requests in
order form one list, of which each *part* owns a contiguous range.
"""

import triton
import triton.language as tl


@triton.jit
def clamp_length(length, capacity):
    """A length below 0 counts as 0, above the table's capacity as the capacity."""
    return tl.minimum(tl.maximum(length, 0), capacity)


@triton.jit
def request_blocks(lens, batch, capacity, BATCH: tl.constexpr, N: tl.constexpr):
    """Request numbers and their block counts; an empty request has one, to own its output."""
    idx = tl.arange(0, BATCH)
    n = clamp_length(tl.load(lens + idx, mask=idx < batch, other=0), capacity)
    return idx, tl.where(idx < batch, tl.maximum((n + N - 1) // N, 1), 0)


@triton.jit
def balance(blocks, batch, parts, SLACK: tl.constexpr, STEP: tl.constexpr):
    """Total blocks, blocks per part (a multiple of STEP, what the loop takes at a time), requests
    per part, and whether whole requests balance.

    *Aligned*: giving each part whole requests costs at most SLACK percent over an even cut of
    the list; then nothing is split and the combine has nothing to do.
    """
    total = tl.sum(blocks, 0)
    per_part = (total + parts * STEP - 1) // (parts * STEP) * STEP
    whole = (batch + parts - 1) // parts
    heaviest = tl.cast(whole, tl.int64) * tl.max(blocks, 0)
    aligned = heaviest * 100 <= tl.cast(per_part, tl.int64) * (100 + SLACK)
    return total, per_part, whole, aligned


@triton.jit
def part_range(
    idx, blocks, part, batch, parts,
    SLACK: tl.constexpr, STEP: tl.constexpr, INVARIANT: tl.constexpr,
):  # fmt: skip
    """Range [lo, hi) of the block list that ``part`` owns.

    Selects, not an ``if``: on Triton 3.7 an scf.if here makes the axis analysis forget every
    pointer alignment below it, and cp.async disappears.
    """
    total, per_part, whole, aligned = balance(blocks, batch, parts, SLACK, STEP)
    lo = tl.minimum(part * per_part, total)
    hi = tl.minimum(lo + per_part, total)
    if not INVARIANT:
        first = tl.sum(tl.where(idx < part * whole, blocks, 0), 0)
        last = tl.sum(tl.where(idx < (part + 1) * whole, blocks, 0), 0)
        lo = tl.where(aligned, first, lo)
        hi = tl.where(aligned, last, hi)
    return lo, hi


@triton.jit
def request_range(idx, blocks, lo, hi, batch):
    """Requests [first, end) that [lo, hi) touches, and the blocks before ``first``."""
    after = tl.cumsum(blocks, 0)
    first = tl.sum(((after <= lo) & (idx < batch)).to(tl.int32), 0)
    end = tl.sum((((after - blocks) < hi) & (idx < batch)).to(tl.int32), 0)
    before = tl.sum(tl.where(idx < first, blocks, 0), 0)
    return first, tl.where(hi <= lo, first, end), before


@triton.jit
def chunk_blocks(n, CHUNK: tl.constexpr, SPLITS: tl.constexpr):
    """Blocks per chunk of a request of ``n`` blocks: its own length decides, nothing else."""
    return tl.maximum((n + SPLITS - 1) // SPLITS, CHUNK)

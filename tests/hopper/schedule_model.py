"""The arithmetic of csrc/sm90/core/schedule.h and of combine.cu's bookkeeping, on the CPU.

One call of :func:`schedule` answers for all parts what every CTA works out for its own. Names are
those of the CUDA source; a change there is a change here.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_TOKENS = 64
MAX_CHUNKS = 32
FEW_FRAGMENTS = 32


@dataclass(frozen=True)
class Config:
    """The scalars of MlaParams that the schedule reads."""

    parts: int = 132
    request_cost: int = 2
    min_part_blocks: int = 1
    capacity: int = 2**31 - 64
    batch_invariant: bool = False
    chunk_blocks: int = 16


@dataclass(frozen=True)
class Fragment:
    request: int
    begin: int
    end: int
    slot: int | None  # None: the whole request, written to out


@dataclass(frozen=True)
class PartPlan:
    fragments: tuple[Fragment, ...]
    empty: tuple[int, ...]  # requests without keys that this part writes
    info: tuple[int, int]  # what the part tells the combine kernel


def length_blocks(length: int) -> int:
    return (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS


def request_overhead(cfg: Config, request: int, blocks: int) -> int:
    if request == 0:
        return 0
    return cfg.request_cost if blocks > 0 else min(cfg.request_cost, 1)


def chunk_blocks(cfg: Config, blocks: int) -> int:
    least = (blocks + MAX_CHUNKS - 1) // MAX_CHUNKS
    return max(cfg.chunk_blocks, least + (least & 1))


def worth(cfg: Config, batch: int, cost: int) -> int:
    most = cost // cfg.min_part_blocks
    return max(1, min(cfg.parts, max(most // 2, min(most, FEW_FRAGMENTS * batch))))


def _clz(x: int) -> int:
    return 32 - x.bit_length()


class Cuts:
    def __init__(self, cost: int, used: int) -> None:
        self.shift = max(0, 10 - _clz(cost))
        self.total = cost >> self.shift
        self.used = used
        length = cost // used
        self.sliver = 2 if length >= 32 else 1 if length >= 8 else 0

    def at(self, part: int) -> int:
        assert part * self.total < 2**32
        return (part * self.total // self.used) << self.shift

    def last_before(self, position: int) -> int:
        x = (position >> self.shift) + 1
        assert x * self.used + self.total - 1 < 2**32
        return min(self.used - 1, (x * self.used + self.total - 1) // self.total - 1)


@dataclass
class _Result:
    first: tuple[int, int]
    last: tuple[int, int]
    split_request: int = -1
    fragments: int = 0


def schedule(lengths: list[int], cfg: Config) -> list[PartPlan]:
    batch = len(lengths)
    lengths = [min(max(n, 0), cfg.capacity) for n in lengths]
    blocks = [length_blocks(n) for n in lengths]
    overhead = [request_overhead(cfg, r, n) for r, n in enumerate(blocks)]
    total = sum(blocks) + sum(overhead)
    used = worth(cfg, batch, total)
    useful = worth(cfg, batch, sum(blocks))
    even = useful // batch * batch
    if max(blocks) == min(blocks) and (useful - even) * 8 <= useful:
        overhead, total, used = [0] * batch, sum(blocks), even
    elif batch > 32:
        whole = _whole_requests(blocks, overhead, total, cfg)
        if whole is not None:
            return [
                _walk(_Result((begin, 0), (end, 0)), part, blocks, lengths, cfg)
                for part, (begin, end) in enumerate(whole)
            ]
    cuts = Cuts(total, used)
    results = []
    for part in range(cfg.parts):
        result = _Result((0 if part == 0 else batch, 0), (batch, 0))
        before = 0
        for r in range(batch):
            _place_cuts(result, cuts, part, r, before, overhead[r], blocks[r], cfg)
            before += overhead[r] + blocks[r]
        results.append(result)
    return [_walk(result, part, blocks, lengths, cfg) for part, result in enumerate(results)]


def _whole_requests(
    blocks: list[int], overhead: list[int], total: int, cfg: Config
) -> list[tuple[int, int]] | None:
    batch, parts = len(blocks), cfg.parts
    if not (batch * 21 >= parts * 20 and total > 0):
        return None
    shift = max(0, 10 - _clz(total))
    twice = (2 * total) >> shift
    load = [0] * parts
    ranges = [(batch, 0)] * parts
    before = 0
    for r in range(batch):
        cost = blocks[r] + overhead[r]
        middle = (2 * before + cost) >> shift
        assert middle * parts < 2**32
        to = min(parts - 1, middle * parts // twice)
        before += cost
        load[to] += cost
        ranges[to] = (min(ranges[to][0], r), max(ranges[to][1], r + 1))
    if max(load) > (total + total // 20) // parts + 2:
        return None
    return [(min(begin, end), end) for begin, end in ranges]


def _place_cuts(
    result: _Result,
    cuts: Cuts,
    part: int,
    r: int,
    before: int,
    overhead: int,
    blocks: int,
    cfg: Config,
) -> None:
    for at_end in (False, True):
        cut = part + at_end
        if cut <= 0 or cut >= cuts.used:
            continue
        x = cuts.at(cut)
        if x < before or x >= before + overhead + blocks:
            continue
        request, block = r, x - before - overhead
        if cfg.batch_invariant:
            chunk = chunk_blocks(cfg, blocks)
            block = 0 if block <= 0 else (block + chunk // 2) // chunk * chunk
            if block >= blocks:
                request, block = r + 1, 0
        else:
            if block < max(cuts.sliver, 1):
                block = 0
            if block > 0 and blocks - block < cuts.sliver:
                request, block = r + 1, 0
        if at_end:
            result.last = (request, block)
            result.split_request = request
            last_inside = before + overhead + blocks - max(cuts.sliver, 1)
            result.fragments = cuts.last_before(last_inside) - part + 1 if block > 0 else 0
        else:
            result.first = (request, block)


def _walk(
    result: _Result, part: int, blocks: list[int], lengths: list[int], cfg: Config
) -> PartPlan:
    (first_request, first_block), (last_request, last_block) = result.first, result.last
    fragments, empty = [], []
    for r in range(first_request, last_request + (last_block > 0)):
        begin = first_block if r == first_request else 0
        end = last_block if r == last_request else blocks[r]
        if lengths[r] == 0:
            empty.append(r)
        step = chunk_blocks(cfg, blocks[r]) if cfg.batch_invariant else max(1, end - begin)
        for at in range(begin, end, step):
            stop = min(at + step, end)
            slot: int | None
            if at == 0 and stop == blocks[r]:
                slot = None
            elif cfg.batch_invariant:
                slot = r * MAX_CHUNKS + at // step
            else:
                slot = 2 * part + (at == 0)
            fragments.append(Fragment(r, at, stop, slot))
    starts_split = last_block > 0 and (last_request > first_request or first_block == 0)
    info = (result.split_request, result.fragments) if starts_split else (-1, 0)
    return PartPlan(tuple(fragments), tuple(empty), info)


def combine_slots(lengths: list[int], plans: list[PartPlan], cfg: Config) -> dict[int, list[int]]:
    """request -> the slots the combine kernel adds, in its order."""
    if cfg.batch_invariant:
        found = {}
        for r, length in enumerate(lengths):
            blocks = length_blocks(min(max(length, 0), cfg.capacity))
            chunk = chunk_blocks(cfg, blocks)
            if blocks > chunk:
                found[r] = [r * MAX_CHUNKS + j for j in range((blocks + chunk - 1) // chunk)]
        return found
    return {
        plan.info[0]: [2 * part + 1] + [2 * (part + j) for j in range(1, plan.info[1])]
        for part, plan in enumerate(plans)
        if plan.info[1] > 1
    }


def imbalance(plans: list[PartPlan], cfg: Config) -> float:
    """The busiest part's cost over the mean, 1.0 for an empty batch."""
    cost = [
        sum(f.end - f.begin for f in plan.fragments)
        + cfg.request_cost * max(0, len({f.request for f in plan.fragments}) - 1)
        for plan in plans
    ]
    return max(cost) * len(cost) / sum(cost) if sum(cost) else 1.0

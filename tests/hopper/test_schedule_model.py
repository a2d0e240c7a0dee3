"""The on-device schedule, on its CPU model: every block once, worker and combine agree.

Run as a program it also reports imbalance: ``python tests/hopper/test_schedule_model.py [count
[seed]]``.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict

import pytest
from schedule_model import Config, combine_slots, imbalance, length_blocks, schedule


def random_case(rng: random.Random) -> tuple[list[int], Config]:
    batch = rng.choice([1, 2, 3, 8, 16, 31, 32, 33, 64, 127, 128, 129, 200, rng.randint(1, 600)])
    top = rng.choice([1, 64, 500, 5000, 40000, 400000])
    kind = rng.randrange(6)
    if kind == 0:
        lengths = [rng.randint(0, top)] * batch
    elif kind == 1:
        lengths = [rng.choice([0, 1, 63, 64, 65, top]) for _ in range(batch)]
    elif kind == 2:
        lengths = [0] * batch
        lengths[rng.randrange(batch)] = top
    elif kind == 3:
        lengths = [max(0, int(rng.normalvariate(top, top / 2))) for _ in range(batch)]
    elif kind == 4:
        lengths = [min(2**21, int(rng.paretovariate(0.7) * top / 50)) for _ in range(batch)]
    else:
        lengths = [rng.randint(-5, top) for _ in range(batch)]
    cfg = Config(
        parts=rng.choice([1, 2, 3, 16, 33, 44, 66, 78, 114, 132, 144]),
        request_cost=rng.choice([0, 3, 6]),
        min_part_blocks=rng.choice([1, 2, 4]),
        capacity=rng.choice([2**31 - 64, 2**31 - 64, 4096]),
        batch_invariant=rng.random() < 0.4,
        chunk_blocks=rng.choice([16, 32]),
    )
    return lengths, cfg


def check(lengths: list[int], cfg: Config) -> float:
    """Raises AssertionError where the schedule is wrong; returns its imbalance."""
    plans = schedule(lengths, cfg)
    assert len(plans) == cfg.parts
    blocks = [length_blocks(min(max(n, 0), cfg.capacity)) for n in lengths]
    covered: dict[int, list[tuple[int, int, int | None]]] = defaultdict(list)
    empty = [r for plan in plans for r in plan.empty]
    slots: set[int] = set()
    for plan in plans:
        for f in plan.fragments:
            assert 0 <= f.begin < f.end <= blocks[f.request], f
            covered[f.request].append((f.begin, f.end, f.slot))
            if f.slot is not None:
                assert f.slot not in slots, f"two fragments in slot {f.slot}"
                slots.add(f.slot)
                if not cfg.batch_invariant:
                    assert f.slot < 2 * cfg.parts
    assert sorted(empty) == [r for r, n in enumerate(blocks) if n == 0]
    promised = combine_slots(lengths, plans, cfg)
    for r, n in enumerate(blocks):
        pieces = sorted(covered[r])
        assert [p[0] for p in pieces] == [0, *[p[1] for p in pieces[:-1]]] if pieces else n == 0
        assert not pieces or pieces[-1][1] == n
        if len(pieces) == 1:
            assert pieces[0][2] is None and r not in promised
        elif pieces:
            assert [p[2] for p in pieces] == promised[r], (r, pieces, promised.get(r))
    if cfg.batch_invariant:
        alone = [sorted(covered[r]) for r in range(min(len(lengths), 4))]
        for r, pieces in enumerate(alone):
            solo = [f for plan in schedule([lengths[r]], cfg) for f in plan.fragments]
            assert [(f.begin, f.end) for f in solo] == [(b, e) for b, e, _ in pieces]
    return imbalance(plans, cfg)


def check_vectors(count: int, seed: int) -> list[tuple[Config, float]]:
    rng = random.Random(seed)
    figures = []
    for i in range(count):
        lengths, cfg = random_case(rng)
        try:
            figure = check(lengths, cfg)
        except AssertionError as e:
            raise AssertionError(f"seed {seed} vector {i}: {cfg} {lengths[:40]}: {e}") from e
        blocks = sum(length_blocks(max(0, min(n, cfg.capacity))) for n in lengths)
        if not cfg.batch_invariant and blocks >= 8 * cfg.parts:
            figures.append((cfg, figure))
    return figures


def test_every_block_once_and_combine_agrees() -> None:
    check_vectors(500, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_vectors(seed: int) -> None:
    check_vectors(1000, seed)


@pytest.mark.parametrize(
    ("lengths", "parts", "bound"),
    [
        ([8192] * 128, 132, 1.04),  # whole requests: 128 of 132 parts work
        ([8192] * 128, 66, 1.04),
        ([32768], 132, 1.04),
        ([4096] * 32, 132, 1.04),
        ([8192] * 8, 132, 1.04),
        ([4096] * 4096, 132, 1.04),
        ([8192] * 8 + [0] * 248, 132, 1.35),  # a padded batch: empty requests are cheap
    ],
)
def test_imbalance_of_serving_shapes(lengths: list[int], parts: int, bound: float) -> None:
    cfg = Config(parts=parts)
    assert check(lengths, cfg) <= bound


def test_costs_past_32_bits_of_products() -> None:
    # 4096 requests of 2^20 tokens: 2^26 blocks, times 132 parts
    check([2**20] * 4096, Config(parts=132))
    check([2**20] * 4096, Config(parts=132, batch_invariant=True))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    figures = sorted(f for _, f in check_vectors(count, seed))
    print(f"{count} vectors (seed {seed}): every block once, combine agrees")
    if figures:
        n = len(figures)
        print(
            f"imbalance (busiest part over mean) of the {n} with >= 8 blocks a part: "
            f"median {figures[n // 2]:.3f}, 95 % {figures[n * 95 // 100]:.3f}, "
            f"worst {figures[-1]:.3f}"
        )


if __name__ == "__main__":
    main()

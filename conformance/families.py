"""The three input families of C1.12 as distributions; numbers in units of 2**-32 (see bits.py).

flat
    N(0, 1)/10: softmax is nearly flat; FlashMLA's own test input.
peaked
    N(0, 1): logit spread about 1. Every V column of a request is shifted by +-0.5, its own
    pattern, so that out does not vanish with the length; the shift of a request's keys moves all
    its logits alike.
extreme
    ``big_logits`` logits to about +-1e4 from whole numbers, whose products any float32 sum holds
    exactly; ``late_token`` the last key beats all others by about 190; ``equal`` all logits of a
    request are one value; ``below`` and ``far_below``: that value is about -5e4 and -1e8.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmla_hub.conformance.bits import SHIFT, SIGMA, Distribution

ONE = 1 << SHIFT


def _normal(spread: float, offsets: tuple[int, ...] = (0,), whole: bool = False) -> Distribution:
    return Distribution(round(spread * ONE) // SIGMA, offsets, whole)


@dataclass(frozen=True)
class Family:
    """Distributions of q and K. Where one has offsets, a choice per column picks.

    ``k_shift``: K's V columns are shifted by their request's sign pattern. ``q_shift``: q takes the
    request's late-token pattern, of which the last key is a multiple. ``equal``: q is 0 outside
    the columns past d_v, and K is one vector of the request there, drawn from ``same`` (None: as
    the rest of K).
    """

    q: Distribution
    k: Distribution
    k_shift: bool = False
    q_shift: bool = False
    equal: bool = False
    same: Distribution | None = None


SHIFTS = (ONE // 2, -ONE // 2, 0)  # by sign, and none: the rope columns
UNSHIFTED = 2
_FLAT = Family(_normal(0.1), _normal(0.1))
_PEAKED = Family(_normal(1), _normal(1, SHIFTS), k_shift=True)
_BIG = Family(_normal(50, whole=True), _normal(50, whole=True))
_LATE = Family(_normal(1, (ONE, -ONE)), _normal(1), q_shift=True)
_EQUAL = Family(_normal(1), _normal(1, SHIFTS), k_shift=True, equal=True)


def _below(size: int) -> Family:
    """64 columns of size * -size at the default scale of 576 columns: -64 / 24 * size**2."""
    return Family(Distribution(0, (size * ONE,)), _normal(1, SHIFTS), k_shift=True, equal=True,
                  same=Distribution(0, (-size * ONE,)))  # fmt: skip


LATE_KEY = Distribution(0, (8 * ONE, -8 * ONE))

_FAMILIES = {
    ("flat", ""): _FLAT,
    ("peaked", ""): _PEAKED,
    ("extreme", "big_logits"): _BIG,
    ("extreme", "late_token"): _LATE,
    ("extreme", "equal"): _EQUAL,
    ("extreme", "below"): _below(136),
    ("extreme", "far_below"): _below(6144),
}


def family_of(name: str, variant: str) -> Family:
    """The family of a case; variants that say nothing of the numbers fall to the plain one."""
    return _FAMILIES.get((name, variant)) or _FAMILIES.get((name, "")) or _BIG


# FP8 caches: codes spread over e4m3's range, and the power of two that brings them to the family
# (a code spread of 32 times 2**-5 is 1, times 2**-8 about 0.1). A group's own power is up to one
# below or above.
E4M3_CODES = _normal(32)
FP8_POWER = {"flat": -8, "peaked": -5, "extreme": -5}
SINK = _normal(1.5, (4 * ONE,))  # near the lse of a few dozen keys, so that it matters

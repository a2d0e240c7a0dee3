"""Partial results of split requests: any magnitude, in either half of the columns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from gpu_cases import D_V, Case, decode, make, needs_hopper, same_bits

pytestmark = [pytest.mark.gpu, needs_hopper]


def only_rope_scores(t: SimpleNamespace) -> SimpleNamespace:
    """Scores then do not depend on what V holds."""
    t.q[..., :D_V] = 0
    return t


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("lengths", [(3000,), (9000,) * 3, (100, 20000, 5000)])
@pytest.mark.parametrize("power", [-90, -20, 40, 100])
def test_a_power_of_two_goes_through(power: int, lengths: tuple[int, ...], invariant: bool) -> None:
    t = only_rope_scores(make(Case(lengths, h_q=128, seed=abs(power))))
    out, lse = decode(t, batch_invariant=invariant)
    t.cache[..., :D_V] *= 2.0**power
    scaled, same_lse = decode(t, batch_invariant=invariant)
    assert same_bits(lse, same_lse)
    assert same_bits(scaled, out * 2.0**power)


def test_halves_of_a_row_may_differ_in_magnitude() -> None:
    t = only_rope_scores(make(Case((9000, 4000), h_q=32)))
    out, _ = decode(t)
    t.cache[..., 256:D_V] *= 2.0**60
    scaled, _ = decode(t)
    assert same_bits(scaled[..., :256], out[..., :256])
    assert same_bits(scaled[..., 256:], out[..., 256:] * 2.0**60)


def test_large_fp16_values() -> None:
    t = only_rope_scores(make(Case((9000, 4000), h_q=32, dtype=torch.float16)))
    t.cache[..., :D_V] = t.cache[..., :D_V].sign() * 100 + 60000
    out, _ = decode(t)
    assert ((out.float() - 60000).abs() <= 132).all()  # fp16 has steps of 32 there


@pytest.mark.parametrize("column", [0, 300])
def test_an_infinite_column_leaves_the_others_alone(column: int) -> None:
    """A key with an infinity that q turns into -inf has weight 0: its own column is lost (0 times
    inf), the others are not."""
    t = make(Case((9000, 4000), h_q=32))
    t.q[..., column] = -t.q[..., column].abs() - 0.1
    ids = t.table[:, 7].long()
    t.cache[ids, 5, :, column] = 1e30  # weight 0, without an infinity
    out, lse = decode(t)
    t.cache[ids, 5, :, column] = torch.inf
    with_infinity, same_lse = decode(t)
    others = [c for c in range(D_V) if c != column]
    assert same_bits(lse, same_lse)
    assert with_infinity[..., column].isnan().all()
    difference = (with_infinity[..., others].float() - out[..., others].float()).abs().max()
    assert difference <= 2e-3 * out[..., others].float().abs().max()

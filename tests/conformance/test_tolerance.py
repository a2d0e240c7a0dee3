"""The bounds of C1.12, at their edges."""

from dataclasses import replace

import numpy as np

from flashmla_hub.conformance import tolerance
from flashmla_hub.conformance.cases import all_cases

CASE = next(c for c in all_cases() if c.id == "core/h16-peaked")


def judge(out: np.ndarray, lse: np.ndarray, got_out: np.ndarray, got_lse: np.ndarray):
    rms = np.full(out.shape[:2], 0.05)
    return tolerance.compare(CASE, got_out, got_lse, out, lse, rms)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.normal(size=(2, 1, 3, 64)), rng.normal(size=(2, 1, 3)) + 5


def test_the_oracle_passes_against_itself() -> None:
    out, lse = vectors()
    result = judge(out, lse, out, lse)
    assert result.ok
    assert result.metrics.worst_abs == 0
    assert result.metrics.bad_elements == 0


def test_out_is_bounded_elementwise() -> None:
    out, lse = vectors()
    limit = 8e-4 + 2.01 / 128 * abs(out[1, 0, 2, 5])
    for factor, ok in ((0.99, True), (1.01, False)):
        got = out.copy()
        got[1, 0, 2, 5] += factor * limit
        result = judge(out, lse, got, lse)
        assert result.ok is ok
    assert result.metrics.at == (1, 0, 2, 5)
    assert result.metrics.tensor == "out"
    assert result.metrics.bad_elements == 1


def test_the_bound_grows_with_v() -> None:
    small, large = np.array(0.05), np.array(5.0)
    assert tolerance.out_bound(CASE, np.zeros(1), small) == 8e-4
    assert np.isclose(tolerance.out_bound(CASE, np.zeros(1), large), 8e-4 * 50)


def test_cosine_catches_what_elements_do_not() -> None:
    out, lse = vectors()
    got = out * (1 + 2e-3)  # every element within its bound, the vector too long
    got[0, 0, 0, ::2] -= 7e-4
    assert not judge(out, lse, got, lse).bad_out.any()
    assert not judge(out, lse, out * 1.012, lse).ok


def test_zero_meets_zero() -> None:
    out, lse = vectors()
    out[0] = 0
    lse[0] = np.inf
    assert judge(out, lse, out, lse).ok
    assert not judge(out, lse, np.where(out == 0, 1e-2, out), lse).ok


def test_inf_and_nan_must_match() -> None:
    out, lse = vectors()
    empty = lse.copy()
    empty[0] = np.inf
    assert not judge(out, lse, out, empty).ok
    assert not judge(out, empty, out, lse).ok
    assert not judge(out, empty, out, np.where(np.isinf(empty), -np.inf, empty)).ok
    broken = out.copy()
    broken[0, 0, 0, 0] = np.nan
    result = judge(out, lse, broken, lse)
    assert not result.ok
    assert result.metrics.inf_mismatch == 1


def test_lse_of_the_extreme_family_is_relative_alone() -> None:
    extreme = replace(CASE, family="extreme")
    assert tolerance.lse_bound(extreme, np.array([0.0])) == 0
    assert np.isclose(tolerance.lse_bound(extreme, np.array([1e4])), 8.01 / 65536 * 1e4)
    free = replace(CASE, layout=("free_scales",))
    assert np.allclose(tolerance.lse_bound(free, np.array([3.0])),
                       4 * tolerance.lse_bound(CASE, np.array([3.0])))  # fmt: skip

"""Every known mistake shows in some case, and is named when a port makes it (C1.12)."""

import numpy as np
import pytest

from flashmla_hub.conformance import diagnosis
from flashmla_hub.conformance.cases import all_cases
from flashmla_hub.conformance.catalogue import CATALOGUE
from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.memory import Call, NotReached
from flashmla_hub.conformance.mistakes import Mistake
from flashmla_hub.conformance.model import Case
from flashmla_hub.conformance.oracle_torch import Oracle, Outputs
from flashmla_hub.conformance.placing import place
from flashmla_hub.conformance.tolerance import compare

# Small cases in which each mistake of the catalogue can show; the first that shows it decides.
WHERE = (
    "core/h16-peaked", "lengths/page-edges", "scale/given", "queries/h16-sq2-causal-peaked",
    "queries/h12-sq3-peaked", "extra/h32-hkv2-peaked", "pages/shared", "strided/h32-",
    "strided/h16-", "extreme/h16-sq2-causal-big", "poison/h16-sq3", "lengths/one-long-flat",
    "sparse/h64-sq2-v32", "sparse/h16-v32-topk64-length", "sparse/h16-v32-topk64-attn_sink",
    "sparse/h16-v32-topk64-extra", "extra/h16-fp32-peaked", "offsets/",
)  # fmt: skip


def candidates() -> list[Case]:
    values = [c for c in all_cases() if c.check == "values"]
    return [c for prefix in WHERE for c in values if c.id.startswith(prefix)]


@pytest.fixture(scope="module")
def calls() -> list[tuple[Call, Outputs]]:
    found = []
    for case in candidates():
        try:
            call = place(Inputs(case))
        except NotReached:
            continue
        found.append((call, Oracle(call).all()))
    return found


def made_by(mistake: Mistake, call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """(out, lse) of a port that makes the mistake's first variant, in the dtypes of the call."""
    oracle = next(mistake.variants(call), None)
    if oracle is None:
        return None
    try:
        wrong = oracle.all()
    except (RuntimeError, IndexError):
        return None
    # float32 here: the rounding of a port's own output would only blur what is tested
    with np.errstate(over="ignore"):
        return (wrong.out.astype(np.float32).astype(np.float64),
                wrong.lse.astype(np.float32).astype(np.float64))  # fmt: skip


@pytest.mark.parametrize("mistake", CATALOGUE, ids=lambda m: m.name)
def test_a_mistake_is_seen_and_named(mistake: Mistake, calls: list[tuple[Call, Outputs]]) -> None:
    seen = []
    for call, want in calls:
        made = made_by(mistake, call)
        if made is None:
            continue
        result = compare(call.case, *made, want.out, want.lse, want.v_rms)
        if result.ok:
            continue
        named = diagnosis.diagnose(call, *made, want, result, unwritten=False)
        seen.append((call.case.id, named.name))
        if named.name == mistake.name:
            return
    pytest.fail(f"{mistake.name}: no case names it; seen as {seen}")


def judged(prefix: str, change: object) -> str:
    """The diagnosis of an oracle's own answer after ``change(out, lse)`` on the case's call."""
    case = next(c for c in all_cases() if c.id.startswith(prefix))
    call = place(Inputs(case))
    want = Oracle(call).all()
    out, lse = want.out.copy(), want.lse.copy()
    change(out, lse)  # type: ignore[operator]
    result = compare(case, out, lse, want.out, want.lse, want.v_rms)
    assert not result.ok
    return diagnosis.diagnose(call, out, lse, want, result, unwritten=False).name


def test_empty_rows_tell_what_they_hold() -> None:
    def lse_of_empty(value: float) -> object:
        def change(out: np.ndarray, lse: np.ndarray) -> None:
            lse[np.isposinf(lse)] = value

        return change

    assert judged("edges/empty-rows", lse_of_empty(np.nan)) == diagnosis.EMPTY_NAN
    assert judged("edges/empty-rows", lse_of_empty(-np.inf)) == diagnosis.EMPTY_MINUS_INF
    assert judged("edges/empty-rows", lse_of_empty(0.0)) == diagnosis.EMPTY_ZERO


def test_places_tell_what_the_numbers_do_not() -> None:
    def heads(out: np.ndarray, lse: np.ndarray) -> None:
        out[:, :, 64:] += 1

    def shared(out: np.ndarray, lse: np.ndarray) -> None:
        out[1:] += 1

    def nan(out: np.ndarray, lse: np.ndarray) -> None:
        out[0] = np.nan

    def transposed(out: np.ndarray, lse: np.ndarray) -> None:
        lse[:] = lse.reshape(lse.shape[0], lse.shape[2], -1).transpose(0, 2, 1)

    assert judged("core/h128-peaked", heads) == diagnosis.HEADS_PAST.format(64)
    assert judged("pages/shared", shared) == diagnosis.SHARED_PAGES
    assert judged("poison/h64-peaked", nan) == diagnosis.ZERO_TIMES_NAN
    assert judged("queries/h16-sq2-causal", transposed) == diagnosis.LSE_TRANSPOSED


def test_what_nobody_knows_is_not_named() -> None:
    rng = np.random.default_rng(3)

    def noise(out: np.ndarray, lse: np.ndarray) -> None:
        out += rng.normal(size=out.shape)

    assert judged("core/h16-peaked", noise) == ""

"""The case table, its frozen lists, and the nouns' JSON."""

import itertools
import json
from dataclasses import replace

import pytest

from flashmla_hub.conformance import mustpass, samples
from flashmla_hub.conformance.cases import all_cases, cases_of
from flashmla_hub.conformance.cases.make import make
from flashmla_hub.conformance.checks import CHECKS
from flashmla_hub.conformance.model import (
    LEVELS,
    Case,
    CaseResult,
    Metrics,
    Outcome,
    RunMeta,
    RunResult,
    Samples,
    canonical_json,
    from_json,
    to_json,
)
from flashmla_hub.conformance.mustpass import drawn


@pytest.mark.parametrize("level", LEVELS)
def test_frozen_lists_are_the_case_table(level: str) -> None:
    """A changed case needs a new contract or generator version, and new lists."""
    assert mustpass.differences(level, cases_of(level)) == []
    assert mustpass.text(cases_of(level)) == mustpass.path(level).read_text()


def test_a_changed_removed_or_added_case_is_named() -> None:
    first, second, *rest = cases_of("L1")
    changed = replace(first, lengths=(1, 2, 3))
    added = replace(second, id="something/else")
    found = mustpass.differences("L1", [changed, added, *rest])
    assert found == [
        f"{second.id}: missing",
        "something/else: not in the list",
        f"{first.id}: the case has changed",
    ]


def test_levels_hold_those_below() -> None:
    for lower, upper in itertools.pairwise(LEVELS):
        assert set(cases_of(lower)) <= set(cases_of(upper))


def test_the_rule_of_drawn_cases_is_frozen() -> None:
    """The same declarations give the same cases on every machine."""
    assert drawn.text() == drawn.PATH.read_text()


def test_every_case_can_be_judged_and_names_its_clauses() -> None:
    for case in all_cases():
        assert case.check in CHECKS, case.id
        assert case.clauses, case.id
        assert all(clause.startswith("C") for clause in case.clauses), case.id
        assert len(case.lengths) == case.batch, case.id
        assert case.seed == 0, case.id


def test_a_misspelt_layout_word_is_an_error() -> None:
    with pytest.raises(ValueError, match="poisson"):
        make("x", "L1", "C1.1", (1,), words="poisson")


def test_json_round_trip() -> None:
    case = all_cases()[5]
    result = CaseResult(
        id=case.id, clauses=case.clauses, outcome=Outcome.FAILED,
        metrics=Metrics(worst_abs=float("inf"), at=(1, 2), expected=1.5, got=float("nan")),
        samples=(Samples(tensor="lse", shape=(1, 2, 1), index=(0, 1),
                         value=(float("inf"), float("-inf"))),),
    )  # fmt: skip
    meta = RunMeta(contract_version=1, kit_version="1", generator_version=1, backend="b",
                   claims=({"h_q": [1, 2]},))  # fmt: skip
    run = RunResult(meta=meta, cases=(case,), results=(result,))
    text = canonical_json(to_json(run))
    again = from_json(RunResult, json.loads(text))
    assert canonical_json(to_json(again)) == text  # nan is not equal to itself
    assert again.cases == run.cases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown field 'colour'"),
        ({"batch": "2"}, "Case.batch: got '2', expected int"),
        ({"lengths": 3}, "Case.lengths: got int, expected a list"),
    ],
)
def test_wrong_json_is_named(change: dict[str, object], message: str) -> None:
    data = {**to_json(all_cases()[3]), **change}
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        from_json(Case, data)


def test_sample_positions_are_seeded_distinct_and_sorted() -> None:
    drawn = samples.positions("core/h16-flat", "out", 100_000)
    assert len(drawn) == samples.COUNT["out"] == len(set(drawn))
    assert list(drawn) == sorted(drawn)
    assert drawn == samples.positions("core/h16-flat", "out", 100_000)
    assert drawn != samples.positions("core/h32-flat", "out", 100_000)
    assert samples.positions("a", "lse", 5) == (0, 1, 2, 3, 4)
    assert samples.coordinate(7, (2, 2, 3)) == (1, 0, 1)

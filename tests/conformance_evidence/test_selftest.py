"""The kit's own proof: mutants are caught and named, honest backends are not."""

from __future__ import annotations

import json

import pytest

from flashmla_hub.capabilities import HAZARDS
from flashmla_hub.conformance import selftest
from flashmla_hub.conformance.model import LEVELS
from flashmla_hub.conformance.mutants.honest import FULL, HALF
from flashmla_hub.conformance.mutants.roster import MUTANTS

INDEX = {mutant.name.removeprefix("mutant_"): i for i, mutant in enumerate(MUTANTS)}


def test_there_are_enough_mutants_and_each_has_cases() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.says
        assert selftest.cases_for(mutant), mutant.name


def test_a_mutants_cases_are_its_clauses_and_no_higher_level() -> None:
    for mutant in MUTANTS:
        for case in selftest.cases_for(mutant):
            assert set(case.clauses) & set(mutant.clauses)
            assert LEVELS.index(case.level) <= LEVELS.index(mutant.level)


def test_honest_backends_declare_no_hazard() -> None:
    assert HAZARDS
    assert not any(declaration.hazards for declaration in FULL + HALF)


@pytest.mark.parametrize(
    "name", ["lse_base2", "scale_ignored", "prints_native", "writes_query", "accepts_unclaimed"]
)
def test_caught_at_its_level_and_named(name: str) -> None:
    verdict = selftest.try_mutant(INDEX[name], seed=0)
    assert verdict.killed
    assert verdict.diagnosed, verdict
    assert LEVELS.index(verdict.level) <= LEVELS.index(verdict.expected_level)


def test_other_inputs_do_not_save_a_mutant() -> None:
    assert selftest.try_mutant(INDEX["scale_off5_percent"], seed=7).diagnosed


@pytest.mark.parametrize("which", range(len(selftest.HONEST)))
def test_honest_backends_pass(which: int) -> None:
    ids = ["smoke/one-call", "core/h16-peaked", "claims/page-16", "invalid/scale_nan"]
    assert selftest.try_honest(which, ids, seed=0) == []


def test_a_survivor_or_a_false_alarm_fails_the_selftest() -> None:
    caught = selftest.Verdict("a", "L1", 0, killed=True, level="L1", diagnosed=True)
    missed = selftest.Verdict("b", "L1", 0, killed=False, ran=9)
    alarm = selftest.FalseAlarm("honest", "smoke/one-call", 0, "low precision")
    assert selftest.passes(selftest.totals([caught], []))
    assert not selftest.passes(selftest.totals([caught, missed], []))
    assert not selftest.passes(selftest.totals([caught], [alarm]))
    text = selftest.table([caught, missed], [alarm])
    assert "survived 9 cases" in text
    assert "FALSE ALARM honest smoke/one-call" in text
    assert text.endswith("mutants 2, killed 1, diagnosed 1, false alarms 1, seeds 1")


def test_a_mutant_that_survives_one_seed_is_not_killed() -> None:
    one = selftest.Verdict("a", "L1", 0, killed=True, diagnosed=True)
    other = selftest.Verdict("a", "L1", 1, killed=False)
    assert selftest.totals([one, other], [])["killed"] == 0


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["-k", "lse_negated", "--jobs", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {k: result[k] for k in ("mutants", "killed", "diagnosed", "false_alarms")} == {
        "mutants": 1,
        "killed": 1,
        "diagnosed": 1,
        "false_alarms": 0,
    }

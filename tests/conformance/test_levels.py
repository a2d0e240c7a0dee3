"""Levels, badges and known failures from made-up results."""

from dataclasses import replace
from pathlib import Path

import pytest

from flashmla_hub.conformance import known, levels
from flashmla_hub.conformance.cases import cases_of
from flashmla_hub.conformance.model import Case, CaseResult, Outcome, RunMeta, RunResult

CPU = RunMeta(contract_version=2, kit_version="1", generator_version=1, backend="b", level="L3",
              device={"type": "cpu"})  # fmt: skip


def passed(case: Case) -> CaseResult:
    outcome = Outcome.REFUSED_OK if case.check == "invalid" else Outcome.PASSED
    if case.check in levels.NEEDS_STREAMS:
        outcome = Outcome.NOT_REACHED
    return CaseResult(id=case.id, clauses=case.clauses, outcome=outcome)


def verdict(meta: RunMeta = CPU, **changes: CaseResult | Outcome) -> RunResult:
    """The run of ``meta.level`` in which all passes but ``changes`` (ids with _ for / and -)."""
    cases = cases_of(meta.level)
    results = []
    for case in cases:
        result = passed(case)
        change = changes.get(case.id.replace("/", "__").replace("-", "_"))
        if isinstance(change, Outcome):
            result = replace(result, outcome=change)
        elif change is not None:
            result = change
        results.append(result)
    return levels.finish(meta, cases, results)


def test_all_passed() -> None:
    run = verdict()
    assert run.level == "L3"
    assert run.badge.startswith("L3 v2 cpu sparse L3 prefill L3 v32 L3 model1 L3 +")
    assert "+fp16" in run.badge
    assert [level.reached for level in run.levels] == [True] * 4 + [False]


def test_a_device_with_streams_needs_the_stream_cases() -> None:
    run = verdict(replace(CPU, device={"type": "cuda"}))
    assert run.level == "L2"
    assert "not_reached" in run.levels[3].why_not


@pytest.mark.parametrize(
    "outcome", [Outcome.FAILED, Outcome.NOT_CLAIMED, Outcome.NOT_REACHED, Outcome.KNOWN_FAILURE]
)
def test_only_a_pass_is_a_pass(outcome: Outcome) -> None:
    run = verdict(edges__batch_0=outcome)
    assert run.level == "L1"
    assert run.levels[2].why_not == f"edges/batch-0: {outcome.value}"


def test_an_optional_case_not_claimed_costs_its_extra_alone() -> None:
    run = verdict(extra__h16_fp16_flat=Outcome.NOT_CLAIMED)
    assert run.level == "L3"
    assert "fp16" not in run.extras


def test_an_optional_case_claimed_and_wrong_costs_the_level() -> None:
    run = verdict(extra__h16_fp16_flat=Outcome.FAILED)
    assert run.level == "L0"
    assert run.levels[1].why_not == "claimed, and wrong: extra/h16-fp16-flat"


def test_part_of_a_run_and_other_inputs_reach_nothing() -> None:
    assert verdict(replace(CPU, selected="C1.7")).badge == ""
    assert verdict(replace(CPU, seed=3)).level == ""


def test_native_and_rewritten_are_counted_apart() -> None:
    case = next(c for c in cases_of("L3") if c.id == "edges/batch-0")
    run = verdict(edges__batch_0=replace(passed(case), rewrites=("pad_heads",)))
    assert run.levels[2].rewritten == 1
    assert run.levels[2].native == run.levels[2].needed - 1


def test_known_failures(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text("# ours\n\ncore/h16-flat | the driver rounds\nedges/batch-0 | later\n")
    listed = known.load(path)
    case, other = (next(c for c in cases_of("L3") if c.id == i) for i in listed)
    results = [
        replace(passed(case), outcome=Outcome.FAILED, reason="0 != 1"),
        passed(other),
    ]
    marked = known.apply(results, listed)
    assert marked[0].outcome is Outcome.KNOWN_FAILURE
    assert marked[0].reason == "the driver rounds (0 != 1)"
    assert known.stale(marked, listed, partial=False) == ["edges/batch-0"]
    assert known.stale(marked[:1], listed, partial=True) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("core/h16-flat\n", "expected 'case id . reason'"), ("a | b\na | c\n", "listed twice")],
)
def test_known_failures_need_a_reason_each(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "known.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        known.load(path)

"""One test for each case. What the port does not claim is skipped with its reason; a known
failure is an expected one, and passing in spite of the list fails (its entry is stale)."""

from __future__ import annotations

import pytest

from flashmla_hub.conformance.judge import judge
from flashmla_hub.conformance.model import Case, CaseResult
from flashmla_hub.conformance.subject import Subject


def test_case(case: Case, subject: Subject, known_failures: dict[str, str]) -> None:
    result = judge(subject, case)
    if case.id in known_failures:
        if result.outcome.bad:
            pytest.xfail(f"{known_failures[case.id]} ({result.reason})")
        pytest.fail(f"{case.id} is listed as a known failure and no longer fails")
    if result.outcome.bad:
        pytest.fail(told(result), pytrace=False)
    if not result.outcome.counts:
        pytest.skip(f"{result.outcome.value}: {result.reason}")


def told(result: CaseResult) -> str:
    """A failure in words: clause, diagnosis, first bad coordinate."""
    found = f" - {result.diagnosis}" if result.diagnosis else ""
    clause = result.clause or ", ".join(result.clauses)
    return f"{result.id} {result.outcome.value}: {clause}{found}\n{result.reason}"

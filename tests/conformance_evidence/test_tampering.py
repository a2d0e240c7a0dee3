"""Evidence changed by hand: each way is caught and called by its name.

``seal`` recomputes the file's digest after the change, as someone would who knows of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from test_forgeries import CONTRADICTIONS

from flashmla_hub.conformance import mustpass
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.report.digests import evidence_digest
from flashmla_hub.conformance.verify import KINDS, verify

Evidence = dict[str, Any]
Change = Callable[[Evidence, Evidence, dict[str, Any]], None]
CASE = "smoke/one-call"
TAMPERINGS: dict[str, tuple[str, bool, Change]] = {}


def tampering(kind: str, seal: bool = True) -> Callable[[Change], Change]:
    """The function changes (statement, its body, the result of CASE); ``kind`` must be found."""

    def add(change: Change) -> Change:
        TAMPERINGS[change.__name__] = (kind, seal, change)
        return change

    return add


def find(body: Evidence, case: str = CASE) -> dict[str, Any]:
    return next(result for result in body["results"] if result["id"] == case)


@tampering("digest", seal=False)
def a_digit_of_an_output(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["samples"][0]["value"][3] += 0.5


@tampering("digest", seal=False)
def the_device(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["device"]["name"] = "A much better one"


@tampering("digest", seal=False)
def a_duration(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["duration"] = 0.001


@tampering("digest", seal=False)
def the_date(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["run"]["ended"] = "2030-01-01T00:00:00+00:00"


@tampering("digest", seal=False)
def the_claims(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["claims"].pop()


@tampering("digest", seal=False)
def the_digest_itself(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["digest"] = ""


@tampering("sample_value")
def an_output_sealed(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["samples"][0]["value"][3] += 0.5


@tampering("sample_value")
def an_lse_in_base_2(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    lse = next(sample for sample in case["samples"] if sample["tensor"] == "lse")
    lse["value"] = [value * 1.5 for value in lse["value"]]


@tampering("sample_format")
def a_last_digit(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["samples"][0]["value"][3] *= 1 + 1e-6


@tampering("metrics")
def errors_made_smaller(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["metrics"]["out_ratio"] /= 1000


@tampering("metrics")
def an_error_past_its_limit(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["metrics"]["cos"] = 0.01


@tampering("sample_positions")
def easier_positions(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["samples"][0]["index"][3] += 1


@tampering("missing_samples")
def no_outputs(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["samples"] = []


@tampering("input_digest")
def other_inputs(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["input_digest"] = "0" * 64


@tampering("missing_case")
def a_removed_case(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["results"].remove(find(body, "smoke/claims-readable"))
    body["totals"] = {"passed": 1}
    statement["predicate"]["passedTests"].remove("smoke/claims-readable")


@tampering("unknown_case")
def a_made_up_case(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["results"].append({**copy.deepcopy(case), "id": "smoke/one-more"})


@tampering("unknown_case")
def a_case_of_another_level(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["results"].append({**copy.deepcopy(case), "id": "core/h16-flat"})


@tampering("duplicate_case")
def a_case_twice(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["results"].append(copy.deepcopy(case))


@tampering("case_digest")
def an_easier_question(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["case_digest"] = "0" * 16


@tampering("clauses")
def more_clauses(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["clauses"].append("C6.1")


@tampering("level")
def a_promoted_level(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["verdict"]["level"] = "L3"
    body["verdict"]["badge"] = body["verdict"]["badge"].replace("L0", "L3")


@tampering("level")
def a_count(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["verdict"]["levels"][0]["native"] += 5


@tampering("missing_case")
def a_promoted_level_with_its_counts(
    statement: Evidence, body: Evidence, case: dict[str, Any]
) -> None:
    body["run"]["level"] = "L1"
    a_promoted_level(statement, body, case)


@tampering("badge")
def a_longer_badge(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["verdict"]["badge"] += " +fp32"


@tampering("totals")
def the_totals(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["totals"]["passed"] += 40


@tampering("test_lists")
def a_test_in_the_envelope(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    statement["predicate"]["passedTests"].append("core/h16-flat")


@tampering("contract_version")
def another_contract(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["contract_version"] = 99


@tampering("generator_version")
def another_generator(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["kit"]["generator_version"] = 99


@tampering("mustpass")
def another_list(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["mustpass"][1]["sha256"] = "0" * 64
    assert mustpass.sha256("L1") != "0" * 64


@tampering("subject")
def another_name(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["backend"]["name"] = "somebody_elses"


@tampering("subject")
def another_build(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["backend"]["files"][0]["sha256"] = "0" * 64


@tampering("marks")
def an_assertion_called_recomputed(
    statement: Evidence, body: Evidence, case: dict[str, Any]
) -> None:
    body["fields"]["asserted"].remove("device")
    body["fields"]["recomputed"].append("device")


@tampering("schema")
def a_field_more(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["verdict"]["certified"] = True


@tampering("schema")
def another_predicate(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    statement["predicateType"] = "https://example.org/better/v1"


@tampering("other_inputs")
def a_run_of_some_cases(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["run"]["selected"] = "one-call"
    body["results"].remove(find(body, "smoke/claims-readable"))


@tampering("outcome")
def a_known_failure_out_of_nowhere(
    statement: Evidence, body: Evidence, case: dict[str, Any]
) -> None:
    find(body, "smoke/claims-readable")["outcome"] = "known_failure"


@tampering("outcome")
def a_pass_with_a_diagnosis(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    case["diagnosis"] = "LSE in base 2"


@tampering("simulated")
def a_simulated_device(statement: Evidence, body: Evidence, case: dict[str, Any]) -> None:
    body["device"]["simulated"] = True


@pytest.mark.parametrize("name", TAMPERINGS)
def test_caught_and_named(name: str, honest: Evidence) -> None:
    kind, seal, change = TAMPERINGS[name]
    body = honest["predicate"]["flashmla_hub"]
    change(honest, body, find(body))
    if seal:
        body["digest"] = evidence_digest(honest)
    result = verify(canonical_json(honest))
    kinds = {finding.kind for finding in result.findings}
    assert kind in kinds, f"expected {kind}, found {result.findings}"
    assert seal == ("digest" not in kinds)


def test_a_failure_turned_into_a_pass(failing: Evidence) -> None:
    """Its errors speak against it; made small, its outputs are missing; both are named."""
    body = failing["predicate"]["flashmla_hub"]
    case = find(body)
    assert case["outcome"] == "failed"
    case.update(outcome="passed", reason="", diagnosis="", clause="")
    body["digest"] = evidence_digest(failing)
    kinds = {finding.kind for finding in verify(canonical_json(failing)).findings}
    assert {"metrics", "missing_samples", "totals", "test_lists", "level"} <= kinds


def test_a_field_twice(honest: Evidence) -> None:
    text = canonical_json(honest).replace('"_type":', '"_type":"x","_type":', 1)
    result = verify(text)
    assert [finding.kind for finding in result.findings] == ["schema"]
    assert "'_type' occurs twice" in result.findings[0].detail


def test_every_kind_of_finding_is_shown_to_occur() -> None:
    """Here, or where whole runs are forged, challenges asked and signatures held."""
    forged = {kind for kind, _ in CONTRADICTIONS.values()} | {"challenge", "signature"}
    assert set(KINDS) == {kind for kind, _, _ in TAMPERINGS.values()} | forged


def test_at_least_twelve_ways_and_half_of_them_sealed() -> None:
    sealed = sum(seal for _, seal, _ in TAMPERINGS.values())
    assert len(TAMPERINGS) >= 12
    assert 2 * sealed >= len(TAMPERINGS)

"""Inputs of whoever asks: a challenge reaches levels, a seed does not, and both are recomputed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from conftest import run_of

from flashmla_hub import config, simulate_device
from flashmla_hub.conformance.challenge import seed_of
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.mutants.honest import HonestBackend
from flashmla_hub.conformance.report.digests import evidence_digest
from flashmla_hub.conformance.report.evidence import build_statement
from flashmla_hub.conformance.samples import positions
from flashmla_hub.conformance.verify import summary, verify

Evidence = dict[str, Any]
NONCE = "a word of mine"  # of the fixture


def body_of(statement: Evidence) -> Evidence:
    return statement["predicate"]["flashmla_hub"]


def case_of(statement: Evidence) -> Evidence:
    return next(r for r in body_of(statement)["results"] if r["id"] == "smoke/one-call")


def test_a_challenge_reaches_its_level_and_is_recomputed(challenged: Evidence) -> None:
    result = verify(canonical_json(challenged), challenge=NONCE)
    assert result.state == "verified", summary(result)
    assert result.badge == "L0 v1 cpu" or result.badge.startswith("L0 v2 cpu")
    assert f"recomputed from the challenge '{NONCE}'" in summary(result)


def test_its_inputs_and_places_are_its_own(challenged: Evidence, honest: Evidence) -> None:
    ours, frozen = case_of(challenged), case_of(honest)
    assert ours["input_digest"] != frozen["input_digest"]
    assert ours["case_digest"] != frozen["case_digest"]
    assert [s["index"] for s in ours["samples"]] != [s["index"] for s in frozen["samples"]]


def test_another_challenge_than_the_one_asked_for(challenged: Evidence) -> None:
    result = verify(canonical_json(challenged), challenge="another")
    assert {finding.kind for finding in result.findings} == {"challenge"}


def test_the_frozen_inputs_where_a_challenge_was_asked_for(honest: Evidence) -> None:
    result = verify(canonical_json(honest), challenge=NONCE)
    assert {finding.kind for finding in result.findings} == {"challenge"}


def test_a_challenge_nobody_asked_for_is_told(challenged: Evidence) -> None:
    result = verify(canonical_json(challenged))
    assert result.ok
    assert any("--challenge" in note for note in result.notes)


def test_evidence_of_one_challenge_called_anothers(challenged: Evidence) -> None:
    """The outputs are on the inputs of the first; a table of known answers fails the same way."""
    forged = copy.deepcopy(challenged)
    body_of(forged)["run"]["challenge"] = "another"
    body_of(forged)["digest"] = evidence_digest(forged)
    kinds = {f.kind for f in verify(canonical_json(forged), challenge="another").findings}
    assert {"case_digest", "input_digest"} & kinds
    assert {"sample_value", "sample_positions"} & kinds


def test_a_seed_is_recomputed_and_has_no_level() -> None:
    statement = build_statement(run_of(HonestBackend(), seed=7))
    result = verify(canonical_json(statement))
    assert result.state == "verified", summary(result)
    assert result.recomputed == 5  # L0: one call of each family
    assert result.badge == ""
    assert "recomputed from seed 7" in summary(result)


def test_the_seed_of_a_challenge_is_never_that_of_the_frozen_inputs() -> None:
    assert seed_of(0, "") == 0
    assert seed_of(5, "") == 5
    drawn = {seed_of(0, str(n)) for n in range(1000)}
    assert len(drawn) == 1000
    assert min(drawn) > 0
    assert max(drawn) < 1 << 63


def test_sample_places_follow_the_seed() -> None:
    assert positions("a/case", "out", 10_000) == positions("a/case", "out", 10_000, 0)
    assert positions("a/case", "out", 10_000, 1) != positions("a/case", "out", 10_000)
    assert positions("a/case", "out", 10, 1) == tuple(range(10))


@pytest.mark.parametrize("override", ["nvidia:sm_90", "amd:gfx942", "cpu"])
def test_evidence_under_a_device_override_is_simulated(override: str) -> None:
    with config.override(device=override):
        statement = build_statement(run_of(HonestBackend()))
    assert body_of(statement)["device"]["simulated"] is True
    kinds = {finding.kind for finding in verify(canonical_json(statement)).findings}
    assert kinds == {"simulated"}


def test_evidence_under_a_simulated_device_is_simulated() -> None:
    backend = HonestBackend()
    backend.runs_simulated = True
    with simulate_device("nvidia", "sm_90"):
        statement = build_statement(run_of(backend))
    assert body_of(statement)["device"]["simulated"] is True
    kinds = {finding.kind for finding in verify(canonical_json(statement)).findings}
    assert "simulated" in kinds

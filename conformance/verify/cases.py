"""Each result against the frozen question it answers, and the set of them against the lists."""

from __future__ import annotations

from dataclasses import replace

from flashmla_hub.conformance import mustpass, records
from flashmla_hub.conformance.cases import all_cases, at_most
from flashmla_hub.conformance.challenge import seed_of
from flashmla_hub.conformance.drawn import cases_from
from flashmla_hub.conformance.levels import NEEDS_STREAMS, has_streams
from flashmla_hub.conformance.model import Case, Metrics, Outcome
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.tolerance import COS_TENSOR, COS_VECTOR
from flashmla_hub.conformance.verify.finding import Verification


def check(evidence: schema.Evidence, result: Verification) -> dict[str, Case]:
    """The kit's case of every result that answers one, by id."""
    seed = seed_of(evidence.run.seed, evidence.run.challenge)
    asked = evidence.run.level
    drawn = _drawn(evidence, result)
    frozen = {c.id: replace(c, seed=seed) if seed else c for c in (*all_cases(), *drawn)}
    known: dict[str, Case] = {}
    for got in evidence.results:
        if got.id in known:
            result.add("duplicate_case", got.id, "two results")
            continue
        case = frozen.get(got.id)
        if case is None:
            result.add("unknown_case", got.id, "the kit asks no such question")
            continue
        known[got.id] = case
        if got.case_digest != case.digest():
            result.add("case_digest", got.id, f"{got.case_digest}, expected {case.digest()}")
        if got.clauses != case.clauses:
            result.add("clauses", got.id, f"{got.clauses}, expected {case.clauses}")
        _outcome(case, got, evidence, result)
    if not evidence.run.selected:
        listed = {*mustpass.load(asked), *(c.id for c in at_most(asked, drawn))}
        for id in listed:
            if id not in known:
                result.add("missing_case", id, f"in the frozen list of {asked}, no result")
        for id in known:
            if id not in listed:
                result.add("unknown_case", id, f"not in the frozen list of {asked}")
    return known


def _drawn(evidence: schema.Evidence, result: Verification) -> tuple[Case, ...]:
    """The cases that the kit draws from the evidence's claims; none, and a finding, where they
    are not of the form the kit records."""
    try:
        return cases_from(evidence.claims)
    except (ValueError, KeyError, TypeError) as error:
        result.add("claims", "claims", f"no cases can be drawn: {error}")
        return ()


def _outcome(
    case: Case, got: schema.CaseEvidence, evidence: schema.Evidence, result: Verification
) -> None:
    """Contradictions between an outcome and the rest of the case."""
    if got.outcome is Outcome.PASSED:
        if got.diagnosis or got.clause:
            result.add("outcome", got.id, f"passed, with the finding {got.diagnosis or got.clause}")
        if records.recorded(case.check) and got.metrics is None:
            result.add("metrics", got.id, "passed without measured errors")
        if case.check in NEEDS_STREAMS and not has_streams(vars(evidence.device)):
            result.add("outcome", got.id, f"passed on type {evidence.device.type}, without streams")
        if got.metrics is not None and (why := beyond(got.metrics)):
            result.add("metrics", got.id, f"passed with {why}")
    if got.outcome is Outcome.REFUSED_OK and case.check not in ("refusal", "invalid"):
        result.add("outcome", got.id, "refused_ok, and the case does not ask for a refusal")
    if got.outcome is Outcome.PASSED and case.check == "invalid":
        result.add("outcome", got.id, "passed, and the case asks for a refusal")
    if got.outcome is Outcome.NOT_REACHED and not got.reason:
        result.add("outcome", got.id, "not_reached, without a reason")
    if got.outcome is Outcome.KNOWN_FAILURE and got.id not in evidence.known_failures:
        result.add("outcome", got.id, "known_failure, and no known failure names it")


def beyond(metrics: Metrics) -> str:
    """What in the metrics forbids a pass, '' if nothing."""
    limits = {
        "out_ratio": 1.0,
        "lse_ratio": 1.0,
        "cos": COS_VECTOR,
        "cos_tensor": COS_TENSOR,
        "inf_mismatch": 0,
        "bad_elements": 0,
    }
    for name, limit in limits.items():
        value = getattr(metrics, name)
        if not value <= limit:  # nan too
            return f"{name} {value:.6g}, above {limit:g}"
    return ""

"""Checks an evidence file without the hardware, and without torch: numpy alone."""

from __future__ import annotations

import random
from collections.abc import Callable

from flashmla_hub.conformance.model import Case, Outcome
from flashmla_hub.conformance.report.schema import CaseEvidence
from flashmla_hub.conformance.verify import cases, envelope, values, verdict
from flashmla_hub.conformance.verify.finding import KINDS, Finding, Verification
from flashmla_hub.conformance.verify.summary import summary

__all__ = ["KINDS", "Finding", "Verification", "summary", "verify"]


def verify(
    text: str,
    share: float = 1.0,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Checks the text of an evidence file.

    ``share`` (0 < share <= 1) of the passed cases is drawn at random by ``seed`` (a fresh one
    where None) and recomputed, at least one; all else is always checked. ``progress(done,
    total)`` is called between cases. Never raises for what the file holds: see
    ``Verification.findings``.
    """
    result = Verification(share=share, seed=random.SystemRandom().randrange(1 << 31))
    if seed is not None:
        result.seed = seed
    data, statement = envelope.parse(text, result)
    if statement is None:
        return result
    evidence = statement.predicate.flashmla_hub
    result.backend = f"{evidence.backend.name} {evidence.backend.version}".strip()
    result.badge = evidence.verdict.badge
    names = [str(evidence.device.get(name, "")) for name in ("vendor", "arch", "name")]
    result.device = " ".join(dict.fromkeys(filter(None, names))) or "an unnamed device"
    result.cases = len(evidence.results)
    envelope.check(data, statement, result)
    if any(f.kind in ("contract_version", "generator_version") for f in result.findings):
        return result  # other questions: nothing below would mean anything
    known = cases.check(evidence, result)
    verdict.check(statement, known, result)
    passed = [
        (known[got.id], got)
        for got in evidence.results
        if got.outcome is Outcome.PASSED and got.id in known and records(known[got.id], got)
    ]
    passed = [(case, got) for case, got in passed if values.check_form(case, got, result)]
    drawn = draw(passed, share, result.seed)
    for done, (case, got) in enumerate(drawn):
        if progress:
            progress(done, len(drawn))
        values.check_values(case, got, result)
    return result


def records(case: Case, got: CaseEvidence) -> bool:
    """Whether a case has to record outputs, or does so all the same."""
    return case.check == "values" or bool(got.samples)


def draw(
    passed: list[tuple[Case, CaseEvidence]], share: float, seed: int
) -> list[tuple[Case, CaseEvidence]]:
    """A random share, at least one where there is one, in the order of the file."""
    if share >= 1 or not passed:
        return passed
    count = max(1, round(share * len(passed)))
    picked = set(random.Random(seed).sample(range(len(passed)), count))
    return [pair for i, pair in enumerate(passed) if i in picked]

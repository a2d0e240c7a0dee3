"""Checks an evidence file without the hardware, and without torch: numpy alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from flashmla_hub.conformance import records
from flashmla_hub.conformance.model import Case, Outcome
from flashmla_hub.conformance.quoting import plain, quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.schema import CaseEvidence
from flashmla_hub.conformance.verify import (
    asserted,
    cases,
    claims,
    envelope,
    facts,
    older,
    signature,
    values,
    verdict,
)
from flashmla_hub.conformance.verify.finding import KINDS, Finding, Verification
from flashmla_hub.conformance.verify.reading import Unreadable, read
from flashmla_hub.conformance.verify.summary import summary

__all__ = ["KINDS", "Finding", "Unreadable", "Verification", "read", "summary", "verify"]


def verify(
    text: str,
    share: float = 1.0,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    challenge: str | None = None,
    path: Path | None = None,
    signers: Path | None = None,
) -> Verification:
    """Checks the text of an evidence file.

    Args:
        text: of the file.
        share: 0 < share <= 1 of the passed cases is drawn at random by ``seed`` (a fresh one
            where None) and recomputed, at least one; all else is always checked.
        seed: see ``share``.
        progress: called ``(done, total)`` between cases.
        challenge: the nonce that the evidence had to be made with; None asks for none.
        path, signers: of the evidence, whose ``.sig`` must hold against the file ``signers``
            (OpenSSH's ALLOWED SIGNERS); no signature is looked for where ``signers`` is None.

    Never raises for what the file holds: see ``Verification.findings``.
    """
    result = Verification(share=share, seed=random.SystemRandom().randrange(1 << 31))
    if seed is not None:
        result.seed = seed
    data, statement = envelope.parse(text, result)
    if statement is None:
        return result
    evidence = statement.predicate.flashmla_hub
    _name(evidence, result)
    envelope.check(data, statement, result)
    facts.check(evidence, result)
    _inputs(evidence, challenge, result)
    if path is not None and signers is not None:
        signature.check(data, path, signers, result)
    if any(f.kind in ("contract_version", "generator_version") for f in result.findings):
        return result  # other questions: nothing below would mean anything
    if any(f.where == "run.level" for f in result.findings):
        return result  # no level was asked for: no list to hold the results against
    if result.older:
        older.check(evidence, result)
        verdict.check_counts(statement, result)
        result.asserted = asserted.lines(evidence, {}, 0)
        return result
    known = cases.check(evidence, result)
    claims.check(evidence, known, result)
    verdict.check(statement, known, result)
    passed = [
        (known[got.id], got)
        for got in evidence.results
        if got.outcome is Outcome.PASSED and got.id in known and records_outputs(known[got.id], got)
    ]
    result.asserted = asserted.lines(evidence, known, len(passed))
    passed = [(case, got) for case, got in passed if values.check_form(case, got, result)]
    result.passed = len(passed)
    drawn = draw(passed, share, result.seed)
    for done, (case, got) in enumerate(drawn):
        if progress:
            progress(done, len(drawn))
        values.check_values(case, got, result)
    return result


def _name(evidence: schema.Evidence, result: Verification) -> None:
    version = evidence.backend.version
    result.backend = quoted(evidence.backend.name) + (f" {quoted(version)}" if version else "")
    result.badge = plain(evidence.verdict.badge)
    names = [evidence.device.vendor, evidence.device.arch, evidence.device.name]
    result.device = quoted(" ".join(dict.fromkeys(filter(None, names))))
    result.cases = len(evidence.results)
    result.contract_version = evidence.contract_version


def _inputs(evidence: schema.Evidence, challenge: str | None, result: Verification) -> None:
    run = evidence.run
    if run.challenge:
        result.inputs = f"the challenge {quoted(run.challenge)}"
        if challenge is None:
            result.notes.append(
                f"the inputs are those of a challenge, {quoted(run.challenge)}: whoever chose it "
                "verifies with --challenge"
            )
    elif run.seed:
        result.inputs = f"seed {run.seed}"
    if challenge is not None and run.challenge != challenge:
        said = quoted(run.challenge) if run.challenge else "none"
        result.add("challenge", "run.challenge", f"{said}, expected {quoted(challenge)}")


def records_outputs(case: Case, got: CaseEvidence) -> bool:
    """Whether a passed case has to record outputs, or does so all the same."""
    return records.recorded(case.check) or bool(got.samples)


def draw(
    passed: list[tuple[Case, CaseEvidence]], share: float, seed: int
) -> list[tuple[Case, CaseEvidence]]:
    """A random share, at least one where there is one, in the order of the file."""
    if share >= 1 or not passed:
        return passed
    count = max(1, round(share * len(passed)))
    picked = set(random.Random(seed).sample(range(len(passed)), count))
    return [pair for i, pair in enumerate(passed) if i in picked]

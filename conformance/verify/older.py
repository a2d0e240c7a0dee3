"""Evidence for an older version of the contract: shown as that, against that version's lists.

Its questions are no longer asked, so its outputs are not recomputed here; the kit that made it
does that. That it is whole, and answers what that version asked, is checked all the same.
"""

from __future__ import annotations

from flashmla_hub.conformance.quoting import quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.evidence import MUSTPASS
from flashmla_hub.conformance.verify.finding import Verification


def check(evidence: schema.Evidence, result: Verification) -> None:
    """Ids and digests of the questions against the frozen list of the level that was asked."""
    listed = frozen(evidence.run.level, evidence.contract_version)
    if not listed:
        version = evidence.contract_version
        result.add("level", "run.level", f"{quoted(evidence.run.level)}, no list of v{version}")
        return
    seen: set[str] = set()
    frozen_inputs = not (evidence.run.seed or evidence.run.challenge)
    for got in evidence.results:
        if got.id in seen:
            result.add("duplicate_case", got.id, "two results")
        elif got.id not in listed:
            result.add("unknown_case", got.id, f"not in the list of {evidence.run.level}")
        elif frozen_inputs and got.case_digest != listed[got.id]:
            result.add("case_digest", got.id, f"{got.case_digest}, expected {listed[got.id]}")
        seen.add(got.id)
    if not evidence.run.selected:
        for id in listed.keys() - seen:
            result.add("missing_case", id, f"in the frozen list of {evidence.run.level}, no result")
    words = evidence.verdict.badge.split()[:2]
    if words and words != [evidence.verdict.level, f"v{evidence.contract_version}"]:
        result.add("badge", "verdict.badge", "does not begin with the level and the version")


def frozen(level: str, version: int) -> dict[str, str]:
    """Case ids and digests of an older version's list, {} where there is none."""
    if not level.isalnum():
        return {}
    path = MUSTPASS / f"{level}-v{version}.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="ascii").splitlines()
    return dict(line.split(" ") for line in lines if line and not line.startswith("#"))

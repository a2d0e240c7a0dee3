"""What a verification found: findings by name, and the result that sums them up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# every name a finding may have, and what it says; docs/conformance.md lists them
KINDS: dict[str, str] = {
    "schema": "a field is missing, unknown or of the wrong type",
    "digest": "the file's digest is not that of its content",
    "contract_version": "made for another version of the contract",
    "generator_version": "inputs drawn by another version of the generator",
    "marks": "the lists of recomputed and asserted fields were changed",
    "mustpass": "the frozen lists named are not this kit's",
    "missing_case": "a frozen case is not among the results",
    "unknown_case": "a result answers no question of the kit",
    "duplicate_case": "two results answer one question",
    "case_digest": "the question is not the kit's",
    "clauses": "the clauses of a case are not the kit's",
    "outcome": "the outcome contradicts the rest of the case",
    "claims": "the declared capabilities and the outcomes contradict each other",
    "device": "what is said of the device contradicts itself",
    "run": "dates, durations, seed or options contradict themselves",
    "input_digest": "the inputs are not those the kit draws",
    "missing_samples": "a passed case records no outputs, or not all",
    "sample_positions": "outputs recorded at other places than the kit's",
    "sample_format": "a recorded output is no value of its dtype",
    "sample_value": "a recorded output is outside the tolerance",
    "metrics": "the measured errors contradict the outcome or the recorded outputs",
    "level": "the level or its counts do not follow from the cases",
    "badge": "the badge does not follow from the level",
    "totals": "the totals do not follow from the cases",
    "test_lists": "in-toto's result and lists do not follow from the cases",
    "subject": "the subject is not the backend, or its digest not that of its files",
    "other_inputs": "a run with other than the frozen inputs, or of selected cases, has no level",
    "simulated": "the device was simulated or overridden: no statement about hardware",
    "challenge": "the inputs are not those of the challenge",
    "signature": "the signature is missing, not over this content, or of nobody listed",
}


@dataclass(frozen=True)
class Finding:
    """``kind`` is a key of KINDS; ``where`` a case id or field; ``detail`` actual and expected."""

    kind: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.detail}"


@dataclass
class Verification:
    """``stale`` and ``notes`` do not make evidence fail; ``findings`` do.

    ``asserted`` are lines on what nobody recomputed: the submitter's word. ``older``: for an
    earlier version of the contract, read and not recomputed. ``signer`` is the principal whose
    signature holds, '' where none was asked for.
    """

    findings: list[Finding] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asserted: list[str] = field(default_factory=list)
    older: bool = False
    contract_version: int = 0
    inputs: str = "the frozen inputs"
    signer: str = ""
    passed: int = 0
    backend: str = ""
    badge: str = ""
    device: str = ""
    cases: int = 0
    recomputed: int = 0
    values: int = 0
    share: float = 1.0
    seed: int = 0

    @property
    def ok(self) -> bool:
        return not self.findings and not self.older

    @property
    def state(self) -> str:
        """``refused``, ``older``, ``stale`` or ``verified``."""
        if self.findings:
            return "refused"
        return "older" if self.older else "stale" if self.stale else "verified"

    def add(self, kind: str, where: str, detail: str) -> None:
        if kind not in KINDS:
            raise KeyError(f"finding kind: got {kind!r}, expected one of {', '.join(KINDS)}")
        self.findings.append(Finding(kind, where, detail))

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "state": self.state,
            "contract_version": self.contract_version,
            "inputs": self.inputs,
            "signer": self.signer,
            "asserted": self.asserted,
            "backend": self.backend,
            "badge": self.badge,
            "device": self.device,
            "cases": self.cases,
            "recomputed": self.recomputed,
            "values": self.values,
            "share": self.share,
            "seed": self.seed,
            "stale": self.stale,
            "notes": self.notes,
            "findings": [vars(finding) for finding in self.findings],
        }

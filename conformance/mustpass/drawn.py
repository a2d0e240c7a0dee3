"""The rule that draws cases from claims, frozen by what it makes of the honest declarations."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flashmla_hub.conformance import CONTRACT_VERSION, GENERATOR_VERSION
from flashmla_hub.conformance.drawn import cases_from
from flashmla_hub.conformance.mutants.honest import FULL
from flashmla_hub.conformance.subject import plain_claims

PATH = Path(__file__).parent / f"drawn-v{CONTRACT_VERSION}.txt"


def text() -> str:
    """A line for each declaration: how many cases, and a digest over their ids and digests."""
    lines = [f"# contract {CONTRACT_VERSION}, generator {GENERATOR_VERSION}: declaration, cases "
             "drawn from it, digest over their ids and digests"]  # fmt: skip
    for number, declaration in enumerate(FULL):
        cases = cases_from([plain_claims(declaration)])
        listed = "".join(f"{case.id} {case.digest()}\n" for case in cases)
        lines.append(f"full-{number} {len(cases)} {hashlib.sha256(listed.encode()).hexdigest()}")
    return "\n".join([*lines, ""])

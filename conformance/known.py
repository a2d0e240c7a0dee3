"""Known failures: a list that a port keeps in its own repository.

One line for each: ``case id | reason``. Lines starting with # and empty ones are skipped. An
entry that no longer fails, or that names no case, is stale, and an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flashmla_hub.conformance.model import CaseResult, Outcome


def load(path: Path) -> dict[str, str]:
    """Reasons by case id. Raises ValueError naming the line for one without a reason."""
    result: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, reason = (part.strip() for part in text.partition("|"))
        if not reason:
            raise ValueError(f"{path}:{number}: {text!r}: expected 'case id | reason'")
        if name in result:
            raise ValueError(f"{path}:{number}: {name} is listed twice")
        result[name] = reason
    return result


def apply(results: Sequence[CaseResult], known: Mapping[str, str]) -> list[CaseResult]:
    """The results with known failures marked; their own reason is kept behind the list's."""
    return [
        replace(r, outcome=Outcome.KNOWN_FAILURE, reason=f"{known[r.id]} ({r.reason})")
        if r.id in known and r.outcome.bad
        else r
        for r in results
    ]


def stale(results: Sequence[CaseResult], known: Mapping[str, str], partial: bool) -> list[str]:
    """Entries that did not fail. With ``partial`` (-k), cases that were not run are left out."""
    failed = {r.id for r in results if r.outcome in (Outcome.KNOWN_FAILURE,) or r.outcome.bad}
    ran = {r.id for r in results}
    return [name for name in known if name not in failed and (name in ran or not partial)]

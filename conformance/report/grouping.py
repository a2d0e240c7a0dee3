"""Failures by cause, and what came of a case in words: one reading for terminal, page and board."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flashmla_hub.conformance.levels import NEEDS_STREAMS, has_streams
from flashmla_hub.conformance.model import Case, CaseResult, Outcome, RunResult

NOT_HERE = "does not apply here"
WORDS = {
    Outcome.PASSED: "passed",
    Outcome.REFUSED_OK: "refused rightly",
    Outcome.FAILED: "failed",
    Outcome.ERROR: "raised an error",
    Outcome.TIMEOUT: "timed out",
    Outcome.CRASHED: "ended the process",
    Outcome.NOT_CLAIMED: "not claimed",
    Outcome.NOT_REACHED: "could not run",
    Outcome.KNOWN_FAILURE: "known failure",
}
# what differs between the messages of one mistake: numbers, coordinates, names of cases
_DETAIL = re.compile(r"\d[\d.e+-]*|\[[^\]]*\]|[a-z0-9_]+=\S+")


@dataclass
class Finding:
    """Failures with one cause; ``first`` is shown in full. ``diagnosed``: by a known mistake."""

    title: str
    clause: str
    diagnosed: bool
    first: CaseResult
    others: list[CaseResult] = field(default_factory=list)

    @property
    def count(self) -> int:
        return 1 + len(self.others)

    @property
    def clauses(self) -> tuple[str, ...]:
        """Those that the failures break, in order."""
        return tuple(dict.fromkeys(clause_of(r) for r in (self.first, *self.others)))


def findings(results: Iterable[CaseResult]) -> list[Finding]:
    """The bad results by cause, the commonest first: one known mistake whatever clause it breaks
    where, else one message whatever its numbers."""
    groups: dict[tuple[str, ...], Finding] = {}
    for result in results:
        if not result.outcome.bad:
            continue
        clause = clause_of(result)
        shape = ("", clause, result.outcome.value, _DETAIL.sub("#", result.reason))
        key = (result.diagnosis,) if result.diagnosis else shape
        if key in groups:
            groups[key].others.append(result)
        else:
            title = result.diagnosis or WORDS[result.outcome]
            groups[key] = Finding(title, clause, bool(result.diagnosis), result)
    return sorted(groups.values(), key=lambda f: -f.count)


def advice(found: list[Finding]) -> str:
    """Where to start, '' where there is one cause or none."""
    if len(found) < 2:
        return ""
    whole = sum(f.count for f in found)
    return f"{found[0].count} of {whole} failures are one: {found[0].title}. Start there."


def clause_of(result: CaseResult) -> str:
    """The clause a failure breaks, else the most telling one of its case."""
    return result.clause or (result.clauses[0] if result.clauses else "")


def applies(case: Case, device: Mapping[str, Any]) -> bool:
    """Whether a case can be asked of the device at all: graphs need one with streams."""
    return has_streams(device) or case.check not in NEEDS_STREAMS


def counts(run: RunResult) -> list[tuple[str, Outcome, int]]:
    """(word, outcome, how many) of all that occurs, cases that do not apply apart."""
    count: dict[tuple[str, Outcome], int] = {}
    for case, result in zip(run.cases, run.results, strict=True):
        key = (word(case, result, run.meta.device), result.outcome)
        count[key] = count.get(key, 0) + 1
    order = list(Outcome)
    return [(w, o, n) for (w, o), n in sorted(count.items(), key=lambda i: order.index(i[0][1]))]


def word(case: Case, result: CaseResult, device: Mapping[str, Any]) -> str:
    """What came of a case, in words."""
    if result.outcome is Outcome.NOT_REACHED and not applies(case, device):
        return NOT_HERE
    return WORDS[result.outcome]


def short_badge(badge: str) -> str:
    """The badge without its optional groups: what fits beside others in a README."""
    return " ".join(part for part in badge.split() if not part.startswith("+"))


def ids(results: Iterable[CaseResult], most: int = 3) -> str:
    """The first few ids, and how many more."""
    names = [result.id for result in results]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""A Decision in words: the answer and its reason first, then what else bears on it.

Backends for other devices or other ops are named and no more: of twenty refusals fifteen say
"another device", and would hide the two that matter. ``everything`` has all reasons of all.
"""

from __future__ import annotations

import html as markup
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmla_hub.decision import Candidate, Decision

Line = tuple[str, str]  # a label, and what it labels


def lines(decision: Decision) -> list[Line]:
    """What a person wants to know, most important first."""
    chosen = decision.candidate
    told: list[Line] = [("selected", f"{decision.selected or 'none'}: {decision.why}")]
    asked = next((c for c in decision.candidates if c.backend == decision.asked), None)
    if chosen is None and asked is not None:
        told += [("refused", f"{asked.backend}: {reason}") for reason in asked.reasons]
    told += [("request", str(decision.choice)), ("device", str(decision.device))]
    told += [("note", note) for note in decision.notes]
    if chosen is not None:
        told += _remarks(chosen)
    others = [c for c in decision.candidates if c not in (chosen, asked)]
    told += [("also", _also(c)) for c in others if c.accepted]
    away = {c.backend: _elsewhere(c, decision) for c in others if not c.accepted}
    near = sorted((c for c in others if away.get(c.backend) == ""), key=lambda c: len(c.reasons))
    told += [("almost", f"{c.backend}: {'; '.join(c.reasons)}") for c in near]
    for what in ("devices", "ops"):
        names = sorted(name for name, where in away.items() if where == what)
        if names:
            told.append(("others", f"for other {what}: {', '.join(names)}"))
    return told


def _elsewhere(candidate: Candidate, decision: Decision) -> str:
    """What a refused backend is for: other ``devices`` (another vendor's), other ``ops``, or ''."""
    first = candidate.reasons[0]
    if first.startswith("device ") and f" {decision.device.vendor} (" not in first:
        return "devices"
    return "ops" if first.startswith("op=") else ""


def text(decision: Decision, everything: bool = False) -> str:
    """``lines`` as text; with ``everything`` each candidate with all it has to say."""
    if not everything:
        return "\n".join(f"{label:<8} {words}" for label, words in lines(decision))
    head = [("selected", f"{decision.selected or 'none'}: {decision.why}")]
    head += [("request", str(decision.choice)), ("device", str(decision.device))]
    head += [("note", note) for note in decision.notes]
    told = [f"{label:<8} {words}" for label, words in head]
    for candidate in decision.candidates:
        verdict = f"rank {candidate.rank}" if candidate.accepted else "refused"
        told.append(f"  {candidate.backend}: {verdict}")
        told += [f"    - {reason}" for reason in candidate.reasons]
        told += [f"    {label} {words}" for label, words in _remarks(candidate)]
    return "\n".join(told)


def html(decision: Decision) -> str:
    """For a notebook: the lines as a table, everything behind a fold."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{label}</th>"
        f"<td style='text-align:left'>{_bold(label, markup.escape(words))}</td></tr>"
        for label, words in lines(decision)
    )
    folded = markup.escape(text(decision, everything=True))
    return (
        f"<table>{rows}</table><details><summary>every backend, every reason</summary>"
        f"<pre>{folded}</pre></details>"
    )


def _bold(label: str, words: str) -> str:
    name, colon, rest = words.partition(":")
    return f"<b>{name}</b>{colon}{rest}" if label == "selected" else words


def _remarks(candidate: Candidate) -> list[Line]:
    told = [("rewrite", rewrite) for rewrite in candidate.rewrites]
    told += [("hazard", hazard) for hazard in candidate.hazards]
    return told + [("note", note) for note in candidate.notes]


def _also(candidate: Candidate) -> str:
    remarks = [f"{label} {words}" for label, words in _remarks(candidate)]
    if not candidate.automatic:
        remarks.insert(0, "by backend= only, for its hazard")
    return f"{candidate.backend} (rank {candidate.rank}){': ' if remarks else ''}" + "; ".join(
        remarks
    )

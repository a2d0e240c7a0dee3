"""The decision is a value: every candidate in order, with all reasons. Printable, hashable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmla_hub.device import DeviceInfo
from flashmla_hub.legalize import Step
from flashmla_hub.request import ChoiceKey


@dataclass(frozen=True)
class Candidate:
    """One backend's answer. ``reasons`` is empty exactly when it is accepted.

    ``rank`` is the declared rank less the rewrites' penalty. ``automatic`` is False for a backend
    that is only used on explicit choice (hazard needs_finite_cache, contract C1.5).
    """

    backend: str
    accepted: bool
    rank: int = 0
    reasons: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    hazards: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    automatic: bool = True

    @property
    def rewrites(self) -> tuple[str, ...]:
        """The rewrites applied, each with its cost in words."""
        return tuple(map(str, self.steps))

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "accepted": self.accepted,
            "rank": self.rank,
            "reasons": list(self.reasons),
            "rewrites": list(self.rewrites),
            "hazards": list(self.hazards),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Decision:
    """Which backend serves a request on a device, and why; and why not the others."""

    choice: ChoiceKey
    device: DeviceInfo
    selected: str | None
    why: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def candidate(self) -> Candidate | None:
        """The selected candidate."""
        return next((c for c in self.candidates if c.backend == self.selected), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "request": str(self.choice),
            "device": str(self.device),
            "selected": self.selected,
            "why": self.why,
            "notes": list(self.notes),
            "candidates": [c.to_json() for c in self.candidates],
        }

    def __str__(self) -> str:
        lines = [f"request  {self.choice}", f"device   {self.device}"]
        lines.append(f"selected {self.selected or 'none'}: {self.why}")
        lines += [f"note     {note}" for note in self.notes]
        for candidate in self.candidates:
            verdict = f"rank {candidate.rank}" if candidate.accepted else "refused"
            lines.append(f"  {candidate.backend}: {verdict}")
            lines += [f"    - {reason}" for reason in candidate.reasons]
            lines += [f"    rewrite {rewrite}" for rewrite in candidate.rewrites]
            lines += [f"    hazard {hazard}" for hazard in candidate.hazards]
            lines += [f"    note {note}" for note in candidate.notes]
        return "\n".join(lines)

"""The decision is a value: every candidate in order, with all reasons. Printable, hashable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmla_hub import narrate
from flashmla_hub.device import DeviceInfo
from flashmla_hub.legalize import Step
from flashmla_hub.request import ChoiceKey


@dataclass(frozen=True)
class Candidate:
    """One backend's answer. ``reasons`` is empty exactly when it is accepted.

    ``rank`` is the declared rank less the rewrites' penalty. ``automatic`` is False for a backend
    that is only used on explicit choice (``capabilities.EXPLICIT_ONLY``, contract C1.5).
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
    """Which backend serves a request on a device, and why; and why not the others.

    ``asked``: the backend that was chosen by name, if one was. ``print`` shows the answer and what
    bears on it, ``text(everything=True)`` every backend with all its reasons.
    """

    choice: ChoiceKey
    device: DeviceInfo
    selected: str | None
    why: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    asked: str | None = None

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

    def text(self, everything: bool = False) -> str:
        """In words, the answer first; ``everything``: each backend with all its reasons."""
        return narrate.text(self, everything)

    def __str__(self) -> str:
        return narrate.text(self)

    def _repr_html_(self) -> str:
        return narrate.html(self)

"""Which cases leave outputs that a verifier recomputes: all that pass, but those of these checks.

They judge the hub's own functions or a declaration, and their outcome is the word of whoever ran
them; so is every rightful refusal.
"""

from __future__ import annotations

WITHOUT_RECORD = frozenset(
    {"harness", "merge", "fp8_quantise", "fp8_round_trip", "fp8_append", "fp8_names"}
)


def recorded(check: str) -> bool:
    """Whether a passed case of that check has to record its outputs."""
    return check not in WITHOUT_RECORD

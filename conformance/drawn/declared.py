"""Declarations as evidence records them, read back: sets of numbers and of words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SPAN = re.compile(r"(?:>= (\d{1,9})|(\d{1,9})\.\.(\d{1,9}))(?:, multiples of (\d{1,9}))?")


@dataclass(frozen=True)
class Numbers:
    """A set of positive integers as capabilities print one, read without torch at hand."""

    values: tuple[int, ...] = ()
    low: int = 1
    high: int | None = None
    step: int = 1

    def __contains__(self, n: int) -> bool:
        if self.values:
            return n in self.values
        return n >= self.low and (self.high is None or n <= self.high) and n % self.step == 0


def numbers(text: str) -> Numbers:
    """The set that a declaration printed. Raises ValueError for anything else."""
    if re.fullmatch(r"\d{1,9}(?: \| \d{1,9}){0,999}", text):
        return Numbers(values=tuple(int(n) for n in text.split(" | ")))
    found = _SPAN.fullmatch(text)
    if not found:
        raise ValueError(f"a set of numbers: got {text[:80]!r}, expected as capabilities print one")
    above, low, high, step = found.groups()
    return Numbers(low=int(above or low), high=int(high) if high else None,
                   step=max(int(step or 1), 1))  # fmt: skip


def ends(accepted: Numbers, served: Sequence[int]) -> tuple[int, ...]:
    """Of ``served`` (ascending: least, middles, greatest) the nearest members within its range,
    without repetition: the least above the first, the largest below each other. () where the
    range holds none."""
    members = [n for n in range(served[0], served[-1] + 1) if n in accepted]
    if not members:
        return ()
    chosen = {members[0]}
    for most in served[1:]:
        chosen |= {max((n for n in members if n <= most), default=members[0])}
    return tuple(sorted(chosen))


class Declaration:
    """One entry of ``claims``: typed access to what the generator needs.

    Raises ValueError, with the field, where an entry is not what the kit writes.
    """

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self.claims = claims

    def word(self, name: str) -> str:
        value = self.claims.get(name)
        if not isinstance(value, str):
            raise ValueError(f"claims: {name}: got {value!r}, expected a word")
        return value

    def numbers(self, name: str) -> Numbers:
        return numbers(self.word(name))

    def words(self, name: str) -> tuple[Any, ...]:
        """A tuple of words, flags or pairs; () where older evidence lacks the field."""
        value = self.claims.get(name, [])
        if not isinstance(value, list | tuple):
            raise ValueError(f"claims: {name}: got {value!r}, expected a list")
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)

    def flag(self, name: str) -> bool:
        return self.claims.get(name) is True

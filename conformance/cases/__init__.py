"""The case table: every question the kit asks, as data. Frozen in ``mustpass/``: a changed case
needs a new contract version or a new generator version, and new lists."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from flashmla_hub.conformance.cases import core, extended, limits, production, serving, smoke
from flashmla_hub.conformance.drawn import cases_from
from flashmla_hub.conformance.model import LEVELS, Case


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case, levels ascending, in the order they are run."""
    cases = [
        *smoke.CASES,
        *core.CASES,
        *serving.CASES,
        *production.CASES,
        *extended.CASES,
        *limits.CASES,
    ]
    ids = [case.id for case in cases]
    twice = {i for i in ids if ids.count(i) > 1}
    if twice:
        raise ValueError(f"case ids occur twice: {', '.join(sorted(twice))}")
    return tuple(sorted(cases, key=lambda case: LEVELS.index(case.level)))


def cases_of(level: str, claims: Iterable[Mapping[str, Any]] = ()) -> tuple[Case, ...]:
    """The cases that a run of ``level`` asks: its own and those of the levels below; with those
    drawn from ``claims``, declarations in the form that evidence records."""
    cases = sorted((*all_cases(), *cases_from(claims)), key=lambda c: LEVELS.index(c.level))
    return at_most(level, cases)


def at_most(level: str, cases: Iterable[Case]) -> tuple[Case, ...]:
    """Those of the level and of the levels below."""
    limit = LEVELS.index(level)
    return tuple(case for case in cases if LEVELS.index(case.level) <= limit)

"""From cases and results to levels and badge; the verifier recomputes them with this very code.

A level is reached when every case it needs (its own and those of the levels below, optional ones
left out) passed or refused rightly, and no optional case up to it went wrong: what a port claims
it must do (C5.2), needed or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmla_hub.conformance.model import (
    LEVELS,
    Case,
    CaseResult,
    LevelResult,
    Outcome,
    RunMeta,
    RunResult,
)

NEEDS_STREAMS = ("graph", "two_streams")  # checks that a device without streams does not need


def has_streams(device: Mapping[str, object]) -> bool:
    return device.get("type") != "cpu"


def needed(case: Case, level: str, device: Mapping[str, object]) -> bool:
    """Whether ``level`` on this device needs the case."""
    if case.optional or LEVELS.index(case.level) > LEVELS.index(level):
        return False
    return has_streams(device) or case.check not in NEEDS_STREAMS


def level_result(
    level: str, cases: Sequence[Case], results: Sequence[CaseResult], meta: RunMeta
) -> LevelResult:
    """The count of one level. ``results`` are in the order of ``cases``."""
    mine = [r for c, r in zip(cases, results, strict=True) if needed(c, level, meta.device)]
    outcomes = [r.outcome for r in mine]
    wrong_extra = [
        r.id
        for c, r in zip(cases, results, strict=True)
        if c.optional and LEVELS.index(c.level) <= LEVELS.index(level) and r.outcome.bad
    ]
    missing = [r for r in mine if not r.outcome.counts]
    why = ""
    if LEVELS.index(meta.level) < LEVELS.index(level):
        why = f"not run: only {meta.level} was asked for"
    elif not mine:
        why = "no case of it was run"
    elif meta.selected:
        why = "only some cases were run (-k)"
    elif meta.seed:
        why = f"run with seed {meta.seed}, not with the frozen inputs"
    elif missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        why = f"{missing[0].id}: {missing[0].outcome.value}{rest}"
    elif wrong_extra:
        rest = f" and {len(wrong_extra) - 1} more" if len(wrong_extra) > 1 else ""
        why = f"claimed, and wrong: {wrong_extra[0]}{rest}"
    good = [r for r in mine if r.outcome.counts]
    return LevelResult(
        level=level,
        reached=not why,
        needed=len(mine),
        native=sum(not r.rewrites for r in good),
        rewritten=sum(bool(r.rewrites) for r in good),
        failed=sum(o.bad for o in outcomes),
        not_claimed=outcomes.count(Outcome.NOT_CLAIMED),
        not_reached=outcomes.count(Outcome.NOT_REACHED),
        known_failures=outcomes.count(Outcome.KNOWN_FAILURE),
        why_not=why,
    )


def finish(meta: RunMeta, cases: Sequence[Case], results: Sequence[CaseResult]) -> RunResult:
    """The whole run's verdict."""
    levels = tuple(level_result(level, cases, results, meta) for level in LEVELS)
    level = ""
    for result in levels:
        if not result.reached:
            break
        level = result.level
    extras = extras_of(cases, results) if level else ()
    words = [level, f"v{meta.contract_version}", str(meta.device.get("type", ""))] if level else []
    badge = " ".join(words + [f"+{name.replace(' ', '_')}" for name in extras])
    return RunResult(
        meta=meta, cases=tuple(cases), results=tuple(results), levels=levels, level=level,
        extras=extras, badge=badge,
    )  # fmt: skip


def by_family(verdict: Any) -> dict[str, str]:
    """The level of each family; evidence of contract 1 has one ladder for all of them."""
    return {"all": verdict.level} if verdict.level else {}


def extras_of(cases: Sequence[Case], results: Sequence[CaseResult]) -> tuple[str, ...]:
    """Optional groups all of whose cases passed."""
    groups: dict[str, bool] = {}
    for case, result in zip(cases, results, strict=True):
        if case.optional:
            groups[case.optional] = groups.get(case.optional, True) and result.outcome.counts
    return tuple(sorted(name for name, good in groups.items() if good))

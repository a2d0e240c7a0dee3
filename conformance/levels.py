"""From cases and results to levels and badge; the verifier recomputes them with this very code.

A level is reached for each family on its own: dense decode, sparse decode, sparse prefill, and
each quantised layout. It needs every case of the family up to that level (optional ones left out)
to have passed or refused rightly, those that belong to all families too, and no optional case of
the family up to it to have gone wrong: what a port claims it must do (C5.2), needed or not.

The run's own level is that of dense decode up to L3; L4 needs the families of the contract's L4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmla_hub.conformance import fp8
from flashmla_hub.conformance.model import (
    CLAIMS,
    LEVELS,
    REFUSAL,
    Case,
    CaseResult,
    FamilyResult,
    LevelResult,
    Outcome,
    RunMeta,
    RunResult,
)
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL

NEEDS_STREAMS = ("graph", "two_streams")  # checks that a device without streams does not need
COMMON = ""  # the family of cases that every family needs
DENSE = "dense"
FAMILIES = (DENSE, "sparse", "prefill", *fp8.LAYOUTS)
FAMILY_LEVELS = LEVELS[:-1]  # a family has no L4: that one is the run's
WHOLE = (DENSE, "prefill", "v32", "model1")  # what L4 needs beside the families' common cases

_OPS = {DENSE_DECODE: DENSE, SPARSE_DECODE: "sparse", SPARSE_PREFILL: "prefill"}


def has_streams(device: Mapping[str, object]) -> bool:
    return device.get("type") != "cpu"


def family_of(case: Case) -> str:
    """The family a case belongs to; COMMON for refusals and the harness."""
    if case.check in (REFUSAL, "harness"):
        return COMMON
    if case.key.kv_format != "dense":
        return case.key.kv_format
    return _OPS.get(case.key.op, COMMON)


def needed(case: Case, level: str, device: Mapping[str, object], family: str = DENSE) -> bool:
    """Whether ``level`` of the family (L4: of the run) on this device needs the case."""
    if case.optional or not counted(case, level, family):
        return False
    return has_streams(device) or case.check not in NEEDS_STREAMS


def counted(case: Case, level: str, family: str) -> bool:
    """Whether a case is among those a level looks at, needed or not."""
    if LEVELS.index(case.level) > LEVELS.index(level):
        return False
    return family_of(case) in ((COMMON, family) if level != LEVELS[-1] else (COMMON, *WHOLE))


def level_result(
    level: str, cases: Sequence[Case], results: Sequence[CaseResult], meta: RunMeta,
    family: str = DENSE,
) -> LevelResult:  # fmt: skip
    """The count of one level. ``results`` are in the order of ``cases``."""
    pairs = list(zip(cases, results, strict=True))
    mine = [r for c, r in pairs if needed(c, level, meta.device, family)]
    own = [c for c, _ in pairs if family_of(c) == family and counted(c, level, family)]
    outcomes = [r.outcome for r in mine]
    wrong_extra = [
        r.id for c, r in pairs if c.optional and counted(c, level, family) and r.outcome.bad
    ]
    missing = [r for r in mine if not r.outcome.counts]
    why = ""
    if LEVELS.index(meta.level) < LEVELS.index(level):
        why = f"not run: only {meta.level} was asked for"
    elif not own:
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


def family_result(
    family: str, cases: Sequence[Case], results: Sequence[CaseResult], meta: RunMeta
) -> FamilyResult:
    """A family's levels, L0 to L3, and the highest reached."""
    levels = tuple(level_result(name, cases, results, meta, family) for name in FAMILY_LEVELS)
    return FamilyResult(family=family, level=_highest(levels), levels=levels)


def _highest(levels: Sequence[LevelResult]) -> str:
    level = ""
    for result in levels:
        if not result.reached:
            break
        level = result.level
    return level


def finish(meta: RunMeta, cases: Sequence[Case], results: Sequence[CaseResult]) -> RunResult:
    """The whole run's verdict."""
    levels = tuple(level_result(level, cases, results, meta) for level in LEVELS)
    families = tuple(family_result(family, cases, results, meta) for family in FAMILIES)
    level = _highest(levels)
    named = [f"{f.family} {f.level}" for f in families
             if f.family != DENSE and f.level not in ("", LEVELS[0])]  # fmt: skip
    extras = extras_of(cases, results) if level or named else ()
    words = [level] if level else []
    words += [f"v{meta.contract_version}", str(meta.device.get("type", "")), *named]
    words += [f"+{name.replace(' ', '_')}" for name in extras]
    return RunResult(
        meta=meta, cases=tuple(cases), results=tuple(results), levels=levels, level=level,
        families=families, extras=extras, badge=" ".join(words) if level or named else "",
    )  # fmt: skip


def by_family(verdict: Any) -> dict[str, str]:
    """The level of each family; evidence of contract 1 has one ladder for all of them."""
    if verdict.families:
        return {item.family: item.level for item in verdict.families if item.level}
    return {"all": verdict.level} if verdict.level else {}


def extras_of(cases: Sequence[Case], results: Sequence[CaseResult]) -> tuple[str, ...]:
    """Optional groups all of whose cases passed."""
    groups: dict[str, bool] = {}
    for case, result in zip(cases, results, strict=True):
        if case.optional and case.optional != CLAIMS:
            groups[case.optional] = groups.get(case.optional, True) and result.outcome.counts
    return tuple(sorted(name for name, good in groups.items() if good))

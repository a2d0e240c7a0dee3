"""The kit judged: ``python -m flashmla_hub.conformance.selftest [--json] [--seeds N]``.

Every mutant has to be caught by a case of its own clauses, at the level named or below; no honest
backend may fail a case. ``diagnosed`` counts the mutants whose failure was called by its name.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from flashmla_hub.backend import Backend
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.conformance.cases import all_cases
from flashmla_hub.conformance.drawn import cases_from
from flashmla_hub.conformance.judge import judge
from flashmla_hub.conformance.levels import needed
from flashmla_hub.conformance.model import LEVELS, Case, CaseResult
from flashmla_hub.conformance.mutants.honest import HalfBackend, HonestBackend
from flashmla_hub.conformance.mutants.roster import ANY, MUTANTS, Mutant
from flashmla_hub.conformance.subject import BackendSubject, plain_claims
from flashmla_hub.testing import registered

FAILURES = 2  # of a mutant: enough to see what is said most
# the honest backends, and the level each has to reach
HONEST: tuple[tuple[type[HonestBackend], str], ...] = ((HonestBackend, "L4"), (HalfBackend, "L2"))
CHUNK = 12  # cases of an honest backend in one task


@dataclass(frozen=True)
class Verdict:
    """What the kit said of one mutant on one seed; ``level`` is the lowest that caught it."""

    name: str
    expected_level: str
    seed: int
    killed: bool
    level: str = ""
    case: str = ""
    said: str = ""
    diagnosed: bool = False
    ran: int = 0


@dataclass(frozen=True)
class FalseAlarm:
    backend: str
    case: str
    seed: int
    said: str


def cost(case: Case) -> int:
    """Roughly how long a case takes: keys times query heads, property checks several calls."""
    key = case.key
    keys = sum(case.lengths) + sum(case.extra_lengths) + 64
    work = keys * (key.h_q * key.s_q + 8) + case.batch * key.s_q * (50_000 + 400 * key.h_q)
    if case.variant.startswith("offset_"):
        work += 10**8
    return work * (1 if case.check == "values" else 4) + (10**9 if case.check == "soak" else 0)


@functools.cache
def _drawn(declared: tuple[Capabilities, ...]) -> tuple[Case, ...]:
    return cases_from([plain_claims(declaration) for declaration in declared])


def drawn_for(mutant: Mutant) -> tuple[Case, ...]:
    """The cases drawn from a mutant's own claims."""
    backend = mutant.make()
    assert isinstance(backend, HonestBackend)
    return _drawn(backend.declares)


def cases_for(mutant: Mutant, every: bool = False, drawn: bool = False) -> list[Case]:
    """Its own clauses' cases up to its level, level by level: by first clause, then cheap ones.

    Of a mutant that says which cases can see it, only those, unless ``every``; ``drawn``: of all
    cases drawn from its claims instead, whatever their clauses.
    """
    limit = LEVELS.index(mutant.level)

    def order(case: Case) -> tuple[int, bool, int]:
        own = case.clauses[0] in mutant.clauses
        return (LEVELS.index(case.level), not own, cost(case))

    if drawn:
        found = sorted(drawn_for(mutant), key=cost)
    else:
        candidates = [*all_cases(), *(drawn_for(mutant) if mutant.optional == ANY else ())]
        found = sorted(
            (
                case for case in candidates
                if LEVELS.index(case.level) <= limit
                and set(case.clauses) & set(mutant.clauses)
                and _group(case, mutant)
            ),
            key=cost if mutant.sees else order,
        )  # fmt: skip
    return [case for case in found if every or mutant.sees is None or mutant.sees(case)]


def _group(case: Case, mutant: Mutant) -> bool:
    if mutant.optional == ANY:
        return True
    return case.optional == mutant.optional or (not mutant.optional and not case.optional)


def results_of(backend: Backend, cases: Iterable[Case], seed: int) -> Iterator[CaseResult]:
    """Judges ``backend`` on the cases, with inputs of ``seed`` (0: the frozen ones)."""
    with registered(backend):
        subject = BackendSubject(backend.name)
        for case in cases:
            yield judge(subject, replace(case, seed=seed) if seed else case)


def try_mutant(index: int, seed: int, every: bool = False, drawn: bool = False) -> Verdict:
    """Runs a mutant until FAILURES of its cases went wrong, or one was named, or all were run."""
    mutant = MUTANTS[index]
    cases = cases_for(mutant, every, drawn)
    levels = {case.id: case.level for case in cases}
    bad: list[CaseResult] = []
    ran = 0
    for result in results_of(mutant.make(), cases, seed):
        ran += 1
        bad += [result] if result.outcome.bad else []
        if len(bad) == FAILURES or (bad and mutant.named(bad[0].diagnosis)):
            break
    verdict = Verdict(mutant.name, mutant.level, seed, bool(bad), ran=ran)
    if not bad:
        return verdict
    names = Counter(result.diagnosis for result in bad if result.diagnosis)
    said = names.most_common(1)[0][0] if names else ""
    return replace(
        verdict,
        level=min((levels[result.id] for result in bad), key=LEVELS.index),
        case=bad[0].id,
        said=said or bad[0].reason[:60],
        diagnosed=any(mutant.named(name) for name in names),
    )


def try_honest(which: int, ids: Sequence[str], seed: int) -> list[FalseAlarm]:
    """Failures of an honest backend on the cases, and what keeps it from its level."""
    kind, level = HONEST[which]
    chosen = set(ids)
    cases = [case for case in all_cases() if case.id in chosen]
    backend = kind()
    device = {"type": "cpu"}
    return [
        FalseAlarm(backend.name, case.id, seed, result.diagnosis or result.reason)
        for case, result in zip(cases, results_of(backend, cases, seed), strict=True)
        if result.outcome.bad or (needed(case, level, device) and not result.outcome.counts)
    ]


def run(
    seeds: int = 1,
    jobs: int = 1,
    every_case: bool = False,
    only: str = "",
    drawn: bool = False,
    short: bool = False,
) -> tuple[list[Verdict], list[FalseAlarm]]:
    """All mutants (or those whose name holds ``only``) and the honest backends on each seed.

    The honest ones run the cases that mutants of L1 and L2 are judged by first, or with
    ``every_case`` the whole table. ``short``: without the mutants of whole axes, which large cases
    alone can see. ``drawn``: the fixed cases off, only those drawn from claims.
    ``jobs`` processes share the work.
    """
    mutants = [
        i for i, m in enumerate(MUTANTS) if only in m.name and not (short and m.sees is not None)
    ]
    table = [case.id for case in all_cases()]
    if drawn:
        table = []
    elif not every_case:
        probes = {case.id for i in mutants for case in cases_for(MUTANTS[i])[:1]}
        table = [name for name in table if name in probes]
    chunks = [table[i : i + CHUNK] for i in range(0, len(table), CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        tried = [
            pool.submit(try_mutant, i, seed, every_case, drawn)
            for seed in range(seeds)
            for i in mutants
        ]
        honest = [
            pool.submit(try_honest, which, ids, seed)
            for seed in range(seeds)
            for which in range(len(HONEST))
            for ids in chunks
        ]
        verdicts = []
        for number, future in enumerate(tried, 1):
            verdicts.append(future.result())
            if sys.stderr.isatty():
                print(f"\r{number} of {len(tried)} mutants\x1b[K", end="", file=sys.stderr)
        alarms = [alarm for future in honest for alarm in future.result()]
    return verdicts, alarms


def totals(verdicts: Sequence[Verdict], alarms: Sequence[FalseAlarm]) -> dict[str, int]:
    """A mutant counts as killed (diagnosed) when it was on every seed."""
    by_name: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.name, []).append(verdict)
    return {
        "mutants": len(by_name),
        "killed": sum(all(v.killed for v in group) for group in by_name.values()),
        "diagnosed": sum(all(v.diagnosed for v in group) for group in by_name.values()),
        "false_alarms": len(alarms),
        "seeds": len({verdict.seed for verdict in verdicts}),
    }


def passes(count: dict[str, int]) -> bool:
    """100 % killed, at least 90 % diagnosed, no false alarm."""
    enough = 10 * count["diagnosed"] >= 9 * count["mutants"]
    return count["killed"] == count["mutants"] and enough and not count["false_alarms"]


def table(verdicts: Sequence[Verdict], alarms: Sequence[FalseAlarm]) -> str:
    lines = [f"{'mutant':34} {'by':3} {'caught':7} said"]
    for v in verdicts:
        caught = v.level if v.killed else "NO"
        mark = "" if v.diagnosed else "   (another name expected)"
        said = f"{v.said}{mark}" if v.killed else f"survived {v.ran} cases"
        seed = f" seed {v.seed}" if v.seed else ""
        name = v.name.removeprefix("mutant_") + seed
        lines.append(f"{name:34} {v.expected_level:3} {caught:7} {said}")
    lines += [f"FALSE ALARM {a.backend} {a.case} seed {a.seed}: {a.said}" for a in alarms]
    count = totals(verdicts, alarms)
    lines.append(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in count.items()))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flashmla_hub.conformance.selftest")
    parser.add_argument("--seeds", type=int, default=1, help="inputs of so many seeds (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--every-case", action="store_true",
                        help="put the whole case table to the honest backends")  # fmt: skip
    parser.add_argument("--drawn", action="store_true",
                        help="fixed cases off: what the cases drawn from claims kill alone, at "
                        "least 80 %% (naming is not asked)")  # fmt: skip
    parser.add_argument("--short", action="store_true",
                        help="without the mutants of whole axes: large cases")  # fmt: skip
    parser.add_argument("-k", dest="only", default="", help="mutants whose name holds this")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    started = time.monotonic()
    verdicts, alarms = run(
        args.seeds, args.jobs, args.every_case, args.only, args.drawn, args.short
    )
    count = totals(verdicts, alarms)
    if args.json:
        result: dict[str, Any] = {**count, "seconds": round(time.monotonic() - started, 1)}
        result["verdicts"] = [vars(verdict) for verdict in verdicts]
        result["alarms"] = [vars(alarm) for alarm in alarms]
        print(json.dumps(result, indent=1))
    else:
        print(table(verdicts, alarms))
    if args.drawn:
        return 0 if 5 * count["killed"] >= 4 * count["mutants"] else 1
    return 0 if passes(count) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A made-up run with every outcome, for tests of the report that need no kernel."""

from __future__ import annotations

import random

from flashmla_hub.conformance.model import (
    Case,
    CaseResult,
    LevelResult,
    Metrics,
    Outcome,
    RunMeta,
    RunResult,
    Samples,
)
from flashmla_hub.request import KernelKey

DEVICE = {
    "vendor": "cpu", "arch": "x86_64", "type": "cpu", "index": 0, "name": "x86_64 CPU",
    "runtime": "torch", "multiprocessors": 0, "shared_memory": 0, "memory": 0,
    "simulated": False, "confidence": "high", "rule": "torch device type 'cpu'",
}  # fmt: skip
CLAUSES = ("C1.1", "C1.3", "C1.5", "C1.7", "C1.8", "C1.10", "C1.12", "C1.13", "C2.3", "C5.2")


def synthetic_run(cases: int = 120, seed: int = 0, broken: bool = True) -> RunResult:
    rng = random.Random(seed)
    asked, results = [], []
    for i in range(cases):
        clause = CLAUSES[i % len(CLAUSES)]
        level = ("L0", "L1", "L1", "L2", "L2", "L3")[i * 6 // cases]
        key = KernelKey(h_q=rng.choice([16, 64, 96, 128]), s_q=rng.choice([1, 2, 4]))
        case = Case(
            id=f"{level}/{clause}/h{key.h_q}-s{key.s_q}-{i:03d}",
            clauses=(clause, "C1.9"),
            level=level,
            key=key,
            batch=3,
            lengths=(1, 64, 1000),
            family=rng.choice(["flat", "peaked"]),
            layout=("shared_pages",) if i % 7 == 0 else (),
        )
        asked.append(case)
        results.append(_result(case, i, rng, broken))
    levels = tuple(
        LevelResult(
            level=f"L{n}", reached=n < 2 or not broken, needed=20 * (n + 1), native=18 * (n + 1),
            rewritten=n, failed=3 if n == 2 and broken else 0, not_claimed=n, not_reached=0,
            known_failures=0, why_not="3 cases failed" if n == 2 and broken else "",
        )
        for n in range(4)
    )  # fmt: skip
    meta = RunMeta(
        contract_version=1, kit_version="1.0", generator_version=1, backend="some_port",
        backend_version="0.3.1", level="L3",
        device=DEVICE,
        claims=({"op": "dense_decode", "dtypes": ["bfloat16"], "h_q": ">= 1"},),
        files=(__file__,), argv=("flashmla-hub", "conformance", "--backend", "some_port"),
        started="2026-11-24T12:00:00+00:00", ended="2026-11-24T12:02:00+00:00",
    )  # fmt: skip
    level = "L1" if broken else "L3"
    return RunResult(
        meta=meta, cases=tuple(asked), results=tuple(results), levels=levels, level=level,
        extras=("fp16",), badge=f"{level} v1 cpu +fp16",
    )  # fmt: skip


def _result(case: Case, i: int, rng: random.Random, broken: bool) -> CaseResult:
    common = {"id": case.id, "clauses": case.clauses, "duration": rng.random() / 10}
    if i % 17 == 3:
        return CaseResult(outcome=Outcome.NOT_CLAIMED, reason="h_q=96: takes 64 | 128", **common)
    if case.clauses[0] == "C5.2":
        return CaseResult(outcome=Outcome.REFUSED_OK, refused_by="backend", **common)
    if broken and case.level == "L2" and case.clauses[0] == "C1.8":
        metrics = Metrics(
            out_ratio=rng.random() / 9, lse_ratio=rng.uniform(40, 900), bad_elements=768,
            tensor="lse", at=(0, 3, 0), expected=6.9077553, got=9.9657843,
        )  # fmt: skip
        return CaseResult(
            outcome=Outcome.FAILED, clause="C1.8", diagnosis="LSE in base 2",
            reason="lse is 1.4427 times what it should be", metrics=metrics, **common,
        )  # fmt: skip
    if broken and i == 77:
        return CaseResult(outcome=Outcome.CRASHED, reason="process ended by signal 11", **common)
    metrics = Metrics(
        out_ratio=10 ** rng.uniform(-2.5, -0.4), lse_ratio=10 ** rng.uniform(-4.2, -1.5), cos=1e-7
    )
    samples = (Samples(tensor="lse", shape=(3, 16, 1), index=(0, 5), value=(1.5, float("inf"))),)
    rewrites = ("pad_heads",) if i % 13 == 0 else ()
    return CaseResult(
        outcome=Outcome.PASSED, metrics=metrics, samples=samples, rewrites=rewrites,
        input_digest="0" * 64, **common,
    )  # fmt: skip

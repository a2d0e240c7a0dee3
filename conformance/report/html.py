"""report.html: one self-contained page. Needs jinja2 (``pip install 'flashmla-hub[report]'``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashmla_hub.conformance.model import (
    Case,
    CaseResult,
    LevelResult,
    Outcome,
    RunResult,
)
from flashmla_hub.conformance.report.badge import COLOURS, FAILED
from flashmla_hub.conformance.report.clauses import order, words
from flashmla_hub.conformance.report.plot import error_plot

WORDS = {
    Outcome.PASSED: "passed",
    Outcome.REFUSED_OK: "refused, rightly",
    Outcome.FAILED: "failed",
    Outcome.ERROR: "raised an error",
    Outcome.TIMEOUT: "timed out",
    Outcome.CRASHED: "ended the process",
    Outcome.NOT_CLAIMED: "not claimed",
    Outcome.NOT_REACHED: "not reached",
    Outcome.KNOWN_FAILURE: "known failure",
}


NO_DEVICE = {"vendor": "unknown device", "arch": "", "name": "", "simulated": False}


@dataclass
class Finding:
    """Failures that share a diagnosis and a clause; ``first`` is shown in full."""

    title: str
    clause: str
    diagnosed: bool
    first: CaseResult
    others: list[CaseResult] = field(default_factory=list)


def findings(run: RunResult) -> list[Finding]:
    """The bad results, grouped by (diagnosis, clause, outcome), in the order of the cases."""
    groups: dict[tuple[str, str, Outcome], Finding] = {}
    for result in run.results:
        if not result.outcome.bad:
            continue
        clause = result.clause or (result.clauses[0] if result.clauses else "")
        key = (result.diagnosis, clause, result.outcome)
        if key in groups:
            groups[key].others.append(result)
        else:
            title = result.diagnosis or WORDS[result.outcome]
            groups[key] = Finding(title, clause, bool(result.diagnosis), result)
    return sorted(groups.values(), key=lambda f: -len(f.others))


def render(run: RunResult, statement: Mapping[str, Any]) -> str:
    """The page. Raises ModuleNotFoundError where jinja2 is missing."""
    import jinja2  # an extra; the evidence itself is written without it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(num=number, words=words, ratio=ratio)
    counts = Counter(result.outcome for result in run.results)
    clauses = sorted({c for r in run.results for c in r.clauses}, key=order)
    text: str = environment.get_template("report.html.j2").render(
        run=run,
        meta=run.meta,
        device={**NO_DEVICE, **run.meta.device},
        evidence=statement["predicate"]["flashmla_hub"],
        pairs=list(zip(run.cases, run.results, strict=True)),
        short=" ".join(word for word in run.badge.split()[1:] if not word.startswith("+")),
        findings=findings(run),
        bad=sum(result.outcome.bad for result in run.results),
        counts=[(o, WORDS[o], counts[o]) for o in Outcome if counts[o]],
        clauses=[(c, sum(c in r.clauses for r in run.results)) for c in clauses],
        ladder=[(level, segments(level)) for level in run.levels],
        plot=error_plot(run.cases, run.results),
        outcome_words=WORDS,
        colour=COLOURS.get(run.level, COLOURS[""]) if run.level else FAILED,
        question=question,
        style=(Path(__file__).parent / "report.css").read_text(),
        script=(Path(__file__).parent / "report.js").read_text(),
    )
    return text


def segments(level: LevelResult) -> list[tuple[str, str, int, float]]:
    """(css class, word, count, percent) of a level's bar; none for a level that was not run."""
    if level.why_not.startswith("not run"):
        return []
    parts = (
        ("ok", "native", level.native),
        ("rewritten", "through a rewrite", level.rewritten),
        ("bad", "failed", level.failed),
        ("known", "known failures", level.known_failures),
        ("gap", "not claimed", level.not_claimed),
        ("gap", "not reached", level.not_reached),
    )
    whole = max(1, sum(count for _, _, count in parts))
    return [(css, word, n, round(100 * n / whole, 2)) for css, word, n in parts if n]


def question(case: Case) -> str:
    """What a case asks, in one line."""
    key = case.key
    parts = [key.op.replace("_", " "), key.dtype, f"{key.d_qk}/{key.d_v}"]
    parts += [f"h_q {key.h_q}", f"h_kv {key.h_kv}", f"s_q {key.s_q}", f"batch {case.batch}"]
    if key.topk:
        parts += [f"topk {key.topk}", key.kv_format]
    parts.append(f"page {key.page_block_size}")
    if key.causal:
        parts.append("causal")
    if case.check == "values":
        parts.append(f"{case.family} inputs")
    parts += [word for word in (case.variant, *case.layout) if word]
    return ", ".join(parts)


def number(value: float | None) -> str:
    if value is None:
        return ""
    if math.isinf(value) or math.isnan(value):
        return str(value)
    return f"{value:.6g}"


def ratio(value: float) -> str:
    """error / tolerance for people: a percentage below 1, a multiple above."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:.3g}x" if value > 1 else f"{100 * value:.2g} %"

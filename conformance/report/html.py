"""report.html: one self-contained page. Needs jinja2 (``pip install 'flashmla-hub[report]'``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmla_hub.conformance.model import (
    Case,
    LevelResult,
    RunResult,
)
from flashmla_hub.conformance.quoting import plain
from flashmla_hub.conformance.report import grouping
from flashmla_hub.conformance.report.badge import COLOURS, FAILED
from flashmla_hub.conformance.report.clauses import order, words
from flashmla_hub.conformance.report.plot import error_plot

_LONGEST = 20_000  # characters of one text on the page
NO_DEVICE = {"vendor": "unknown device", "arch": "", "name": "", "simulated": False}


def render(run: RunResult, statement: Mapping[str, Any]) -> str:
    """The page. Raises ModuleNotFoundError where jinja2 is missing."""
    import jinja2  # an extra; the evidence itself is written without it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    environment.filters.update(num=number, words=words, ratio=ratio)
    found = grouping.findings(run.results)
    clauses = sorted({c for r in run.results for c in r.clauses}, key=order)
    text: str = environment.get_template("report.html.j2").render(
        run=run,
        meta=run.meta,
        device={**NO_DEVICE, **run.meta.device},
        evidence=statement["predicate"]["flashmla_hub"],
        pairs=list(zip(run.cases, run.results, strict=True)),
        short=" ".join(grouping.short_badge(run.badge).split()[1:]),
        findings=found,
        advice=grouping.advice(found),
        bad=sum(result.outcome.bad for result in run.results),
        counts=grouping.counts(run),
        clauses=[(c, sum(c in r.clauses for r in run.results)) for c in clauses],
        ladder=[(level, segments(level)) for level in run.levels],
        plot=error_plot(run.cases, run.results),
        word=lambda case, result: grouping.word(case, result, run.meta.device),
        colour=COLOURS.get(run.level, COLOURS[""]) if run.level else FAILED,
        question=question,
        style=(Path(__file__).parent / "report.css").read_text(),
        script=(Path(__file__).parent / "report.js").read_text(),
    )
    return text


def _visible(value: Any) -> Any:
    """What a port may choose, without control characters, marks of direction and look-alikes."""
    return plain(value, _LONGEST) if type(value) is str else value


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
        ("gap", "could not run", level.not_reached),
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
    """A share of the tolerance for people: a percentage up to 1, a multiple above."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:.3g}x" if value > 1 else f"{100 * value:.2g} %"

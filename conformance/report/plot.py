"""Error against tolerance by case, as one inline SVG that scales from phone to desktop.

One line a clause, one mark a case and tensor, on a logarithmic axis of error / tolerance: 1 is
the limit. Positions are percentages, so text keeps its size whatever the width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from xml.sax.saxutils import escape

from flashmla_hub.conformance.model import Case, CaseResult, Metrics
from flashmla_hub.conformance.report.clauses import order, words

LOW, HIGH = -4.0, 2.0  # decades of error / tolerance shown; the rest is drawn at the edge
ROW, TOP = 26, 24  # pixels
_LEFT, _WIDTH = 15, 82  # percent of the drawing


def error_plot(cases: Iterable[Case], results: Iterable[CaseResult]) -> str:
    """The drawing, '' when no case was measured."""
    rows: dict[str, list[CaseResult]] = {}
    for case, result in zip(cases, results, strict=True):
        if result.metrics is not None:
            clause = case.clauses[0] if case.clauses else "?"
            rows.setdefault(clause, []).append(result)
    if not rows:
        return ""
    clauses = sorted(rows, key=order)
    height = TOP + ROW * len(clauses) + 22
    parts = [
        f'<svg class="plot" width="100%" height="{height}" role="img" '
        'aria-label="error divided by tolerance, by clause and case">'
    ]
    for i, clause in enumerate(clauses):
        y = TOP + ROW * i
        if i % 2 == 0:
            parts.append(f'<rect class="band" x="0" y="{y}" width="100%" height="{ROW}"/>')
        parts.append(
            f'<text class="label" x="4" y="{y + 17}">{escape(clause)}'
            f"<title>{escape(words(clause))}</title></text>"
        )
    parts.append(f'<svg x="{_LEFT}%" width="{_WIDTH}%" height="{height}" overflow="visible">')
    parts.append(_axis(height))
    for i, clause in enumerate(clauses):
        for result in rows[clause]:
            parts.extend(_marks(result, TOP + ROW * i))
    parts.append("</svg></svg>")
    return "\n".join(parts)


def _axis(height: int) -> str:
    parts = []
    bottom = height - 20
    for decade in range(int(LOW), int(HIGH) + 1):
        x = _percent(10.0**decade)
        limit = decade == 0
        name = "limit" if limit else "grid"
        parts.append(f'<line class="{name}" x1="{x}%" x2="{x}%" y1="{TOP - 4}" y2="{bottom}"/>')
        text = {0: "limit", 1: "10x", 2: "≥100x", int(LOW): "≤1/10000"}.get(decade)
        if text is None:
            text = f"1/{10**-decade}"
        parts.append(f'<text class="tick {name}-text" x="{x}%" y="{height - 4}">{text}</text>')
    parts.append(f'<rect class="over" x="{_percent(1)}%" y="{TOP - 4}" '
                 f'width="{100 - _percent(1):.2f}%" height="{bottom - TOP + 4}"/>')  # fmt: skip
    return "\n".join(parts)


def _marks(result: CaseResult, y: int) -> list[str]:
    metrics = result.metrics
    if metrics is None:
        return []
    jitter = hashlib.sha256(result.id.encode()).digest()
    parts = []
    for i, (tensor, ratio) in enumerate((("out", metrics.out_ratio), ("lse", metrics.lse_ratio))):
        shown = _shown(ratio, metrics)
        bad = not result.outcome.counts
        at = y + 5 + (ROW - 10) * jitter[i] / 255
        label = f"{result.id}: {tensor} error is {ratio:.3g} of its tolerance"
        if metrics.inf_mismatch:
            label += f", {metrics.inf_mismatch} positions of inf or nan differ"
        css = f"{tensor}{' bad' if bad else ''}"
        shape = (
            f'<circle class="{css}" cx="{_percent(shown)}%" cy="{at:.1f}" r="3.4">'
            if tensor == "out"
            else f'<rect class="{css}" x="{_percent(shown)}%" y="{at - 3:.1f}" '
            'width="6" height="6" transform="translate(-3 0)">'
        )
        end = "circle" if tensor == "out" else "rect"
        parts.append(f"{shape}<title>{escape(label)}</title></{end}>")
    return parts


def _shown(ratio: float, metrics: Metrics) -> float:
    return math.inf if math.isnan(ratio) or metrics.inf_mismatch else ratio


def _percent(ratio: float) -> float:
    if ratio <= 0:
        decade = LOW
    elif math.isinf(ratio):
        decade = HIGH
    else:
        decade = min(HIGH, max(LOW, math.log10(ratio)))
    return round(100 * (decade - LOW) / (HIGH - LOW), 2)

"""Two plots that answer: how many times as fast as the best peer, and how near to the roof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmla_hub.bench.results import Measured, Row, ratio
from flashmla_hub.errors import InvalidRequestError

MARKERS = "os^Dv*PX"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")


@dataclass(frozen=True)
class Theme:
    """Colours of the ground, of text and of lines; the ground is painted, so that a picture can be
    read wherever it is shown."""

    ground: str
    text: str
    line: str


LIGHT = Theme("#ffffff", "#1f2328", "#d8dee4")
DARK = Theme("#0d1117", "#e6edf3", "#30363d")


def bars(measured: Measured, path: Path, theme: Theme = LIGHT) -> None:
    """For each shape and each of ours, a bar from 1 to best peer / ours; to the right is faster.
    Without peers: against the fastest of the others.

    Raises:
        InvalidRequestError: matplotlib is not installed, or nothing was compared.
    """
    peers = measured.peers
    ours = [name for name in measured.names if name not in peers]
    if not peers:
        ours, peers = ours[:1], ours[1:]
    rows = [row for row in measured.rows if any(ratio(row.us, n, peers) for n in ours)]
    if not rows:
        raise InvalidRequestError("--plot", "one backend", "two that were timed on one shape")
    # a backend of few shapes among those shown still has its place in each group
    height = 0.8 / len(ours)
    figure, axes = _figure(10, 1.5 + len(rows) * (0.12 + 0.16 * len(ours)), theme)
    labels = []
    for i, name in enumerate(ours):
        values = [ratio(row.us, name, peers) for row in rows]
        known = [value for value in values if value]
        mean = math.exp(sum(map(math.log, known)) / len(known)) if known else float("nan")
        at = [n + height * (i - (len(ours) - 1) / 2) for n in range(len(rows))]
        drawn = [(value or 1.0) - 1 for value in values]
        axes.barh(at, drawn, left=1.0, height=height * 0.9, color=COLOURS[i % len(COLOURS)])
        labels.append(f"{name}: geometric mean {mean:.2f}")
        for y, value in zip(at, values, strict=True):
            side = 1 if (value or 1) >= 1 else -1
            axes.annotate(
                f"{value:.2f}" if value else "not timed", (value or 1.0, y), va="center",
                xytext=(3 * side, 0), textcoords="offset points", fontsize=7.5,
                ha="left" if side > 0 else "right", color=theme.text,
            )  # fmt: skip
    axes.axvline(1.0, color=theme.text, linewidth=1.2)
    axes.margins(x=0.12)
    axes.set_xlabel(f"times as fast as the best of {', '.join(peers)} on that shape")
    axes.set_title(measured.device, fontsize=10.5, color=theme.text, loc="left")
    _shapes(axes, rows)
    _legend(axes, [_patch(COLOURS[i % len(COLOURS)]) for i in range(len(ours))], labels, theme)
    _write(figure, path)


def roofline(measured: Measured, path: Path, theme: Theme = LIGHT) -> None:
    """For each shape, what each backend reaches of what this device could: of its measured read
    rate or GEMM rate, whichever bounds the shape.

    Raises:
        InvalidRequestError: matplotlib is not installed, or nothing was timed.
    """
    rows = [row for row in measured.rows if row.us]
    if not rows:
        raise InvalidRequestError("--roofline", "no timed shape", "one at least")
    ceilings = measured.ceilings
    figure, axes = _figure(10, 1.6 + len(rows) * 0.3, theme)
    for i, name in enumerate(measured.names):
        points = []
        for y, row in enumerate(rows):
            if name in row.us:
                memory = row.flop / row.bytes * ceilings.read_gbps / 1e3
                roof = min(ceilings.gemm_tflops, memory)
                points.append((100 * row.tflops(name) / roof, y))
        if points:
            x, y_at = zip(*points, strict=True)
            axes.scatter(
                x, y_at, marker=MARKERS[i % len(MARKERS)], s=46, label=name, zorder=3,
                color=COLOURS[i % len(COLOURS)], edgecolors=theme.ground, linewidths=0.6,
            )  # fmt: skip
    for y in range(len(rows)):
        axes.axhline(y, color=theme.line, linewidth=0.6, zorder=0)
    axes.axvline(100, color=theme.text, linewidth=1.2)
    axes.set_xlim(0, 106)
    axes.set_xlabel(
        f"% of the roof: the lower of reading K at {ceilings.read_gbps:.0f} GB/s and "
        f"{ceilings.gemm_tflops:.0f} TFLOP/s"
    )
    axes.set_title(measured.device, fontsize=10.5, color=theme.text, loc="left")
    _shapes(axes, rows)
    handles, names = axes.get_legend_handles_labels()
    _legend(axes, handles, names, theme)
    _write(figure, path)


def _figure(width: float, height: float, theme: Theme) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        wants = "matplotlib, for instance by pip install matplotlib"
        raise InvalidRequestError("--plot", str(error), wants) from error
    figure = Figure(figsize=(width, height), dpi=130, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(theme.ground)
    axes.tick_params(colors=theme.text, length=0, labelsize=8.5)
    axes.xaxis.label.set_color(theme.text)
    axes.xaxis.label.set_fontsize(9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)
    axes.grid(True, axis="x", color=theme.line, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _shapes(axes: Any, rows: Sequence[Row]) -> None:
    """The shapes down the side, the first on top."""
    axes.set_yticks(range(len(rows)), [str(row.shape) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _legend(axes: Any, handles: Sequence[Any], labels: Sequence[str], theme: Theme) -> None:
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=8, fontsize=8.5,
        frameon=False, labelcolor=theme.text, borderaxespad=0.0,
    )  # fmt: skip
    axes.title.set_position((0, 1))
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=24, fontsize=10.5, color=theme.text)


def _patch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)


def _write(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=figure.get_facecolor())

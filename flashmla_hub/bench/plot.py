"""The roofline: achieved rate over arithmetic intensity, under the device's measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashmla_hub.bench.results import Row
from flashmla_hub.bench.timing import Ceilings
from flashmla_hub.errors import InvalidRequestError

MARKERS = "os^Dv*PX"


def roofline(
    rows: Sequence[Row], names: Sequence[str], ceilings: Ceilings, title: str, path: Path
) -> None:
    """Write a PNG.

    Raises:
        InvalidRequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError as error:
        wants = "matplotlib (pip install 'flashmla-hub[report]'), or no --plot"
        raise InvalidRequestError("--plot", str(error), wants) from error
    figure = Figure(figsize=(10, 6.2), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    intensity = [row.flop / row.bytes for row in rows]
    low, high = min(intensity) * 0.6, max(intensity) * 1.7
    ridge = ceilings.gemm_tflops * 1e3 / ceilings.read_gbps
    roof_x = sorted({low, min(max(ridge, low), high), high})
    roof_y = [min(ceilings.gemm_tflops, x * ceilings.read_gbps / 1e3) for x in roof_x]
    axes.plot(roof_x, roof_y, color="0.25", linewidth=1.6, zorder=1)
    # shapes share an intensity: the backends stand beside each other, not on each other
    spread = [1.0 + 0.035 * (i - (len(names) - 1) / 2) for i in range(len(names))]
    for i, name in enumerate(names):
        points = [
            (x * spread[i], row.tflops(name))
            for x, row in zip(intensity, rows, strict=True)
            if name in row.us
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(
                x, y, marker=MARKERS[i % len(MARKERS)], s=42, alpha=0.85, label=name,
                linewidths=0.5, edgecolors="white", zorder=2,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    reached = [row.tflops(name) for row in rows for name in row.us]
    axes.set_ylim(min(reached) * 0.6, ceilings.gemm_tflops * 2)
    axes.text(
        0.015, 0.975,
        f"measured: GEMM {ceilings.gemm_tflops:.0f} TFLOP/s, read {ceilings.read_gbps:.0f} GB/s",
        transform=axes.transAxes, va="top", fontsize=9, color="0.25",
    )  # fmt: skip
    marked = {row.shape.s_q * row.shape.h_q: x for x, row in zip(intensity, rows, strict=True)}
    axes.set_xticks(list(marked.values()), [f"{x:.0f}\n{n} rows" for n, x in marked.items()])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_xlabel("FLOP per byte of K (rows: query tokens times query heads)")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="major", color="0.9", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)

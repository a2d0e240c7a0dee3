"""``flashmla-hub bench``: every available backend side by side in one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from flashmla_hub import api
from flashmla_hub.bench import shapes
from flashmla_hub.bench.results import Measured, Row, ratio, summaries
from flashmla_hub.cli import checked
from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.device import DeviceInfo
from flashmla_hub.version import __version__

HELP = "time every available backend side by side"
TIMES_BESIDE = (("per layer in a graph, us", "graph_us"), ("host time to issue, us", "host_us"))
WRONG_ABOVE = 1e-4  # cosine difference to the first backend's output
EPILOG = """\
examples:
  flashmla-hub bench                                   the standard grid, every backend here
  flashmla-hub bench --grid latency                    small batches, as layers of a graph
  flashmla-hub bench --shape 128,1,16,8192 --shape 1,1,128,131072 --backend NAME --backend NAME
  flashmla-hub bench --json bench.json --plot bench.png
  flashmla-hub bench --from bench.json --plot bars.png --roofline roof.png     on any machine

Device time is the median of interleaved calls, the cache flushed before each and the host ahead;
foreign packages are called as their own users call them. Ratios are best peer / backend: above 1
the backend is faster.

exit codes: 0 measured, 1 a backend's output disagrees or nothing could be timed, 2 wrong use or
no accelerator
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", choices=shapes.GRIDS, help="default: std, without --shape")
    parser.add_argument(
        "--shape", action="append", default=[], metavar=shapes.FORM,
        help="a shape of your own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--backend", action="append", default=[], metavar="NAME", help="may be repeated"
    )
    parser.add_argument("--device", help="torch device (default: this machine's accelerator)")
    parser.add_argument("--reps", type=int, default=15, metavar="N", help="calls per median")
    parser.add_argument("--layers", type=int, default=20, metavar="N", help="calls per graph")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--from", dest="saved", type=Path, metavar="FILE",
        help="measure nothing: show, or plot, what --json FILE wrote",
    )  # fmt: skip
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="for programs: on stdout, or written to FILE beside the tables",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="bars: times as fast as the best peer, a PNG"
    )
    parser.add_argument(
        "--roofline", type=Path, metavar="FILE", help="share of the roof reached, a PNG"
    )
    parser.add_argument("--dark", action="store_true", help="plots for a dark page")


def run(args: argparse.Namespace) -> int:
    for option in ("json", "plot", "roofline"):
        place = getattr(args, option)
        if place and place != "-":
            checked.file(Path(place), f"--{option}")
    if args.saved:
        measured = Measured.read(args.saved)
        return _finish(args, measured, _console(args), wrote=measured.rows)
    chosen = [shapes.parse(text) for text in args.shape]
    if args.grid or not chosen:
        chosen += shapes.grid(args.grid or "std", args.seed)
    device = api.resolve_device(args.device)
    runtime: Any = getattr(torch, device.type, None)
    if device.simulated or not hasattr(runtime, "Event") or not hasattr(runtime, "CUDAGraph"):
        print(
            f"flashmla-hub bench: {device} has no clock to time kernels with; this needs an "
            "accelerator that torch has events and graphs for (flashmla-hub devices lists yours); "
            "--from FILE shows what was measured elsewhere",
            file=sys.stderr,
        )
        return 2
    return _measure(args, device, chosen)


def _console(args: argparse.Namespace) -> Console:
    return Console(soft_wrap=True, stderr=args.json == "-")


def _measure(args: argparse.Namespace, device: DeviceInfo, chosen: list[shapes.Shape]) -> int:
    from flashmla_hub.bench.runner import contenders, measure
    from flashmla_hub.bench.timing import DeviceClock

    console = _console(args)
    field = contenders(device, args.backend, chosen[0])
    if not field:
        console.print(f"no backend to time on {device}: see flashmla-hub backends")
        return 1
    clock = DeviceClock(torch.device(device.type, device.index))
    measured = Measured(
        device=f"{device.name} {device}, torch {torch.__version__}, {device.runtime}",
        names=[contender.name for contender in field],
        peers=[contender.name for contender in field if contender.peer],
        ceilings=clock.ceilings(),
        backends={c.name: c.backend.info.summary for c in field},
        command=sys.argv[1:],
        flashmla_hub=__version__,
    )
    _head(measured, console)
    stopped = False
    try:
        for row in measure(
            chosen, field, clock, seed=args.seed, reps=args.reps, layers=args.layers
        ):  # fmt: skip
            measured.rows.append(row)
            console.print(line_of(row, measured.names, measured.peers), markup=False)
        measured.host_floor_us = clock.host_floor()
    except KeyboardInterrupt:
        stopped = True
    code = _finish(args, measured, console)
    if stopped:
        kept = f", written to {args.json}" if args.json and args.json != "-" else ""
        raise Interrupted(f"{len(measured.rows)} of {len(chosen)} shapes measured{kept}")
    return code


def _head(measured: Measured, console: Console) -> None:
    ceilings = measured.ceilings
    console.print(
        f"{measured.device}\nGEMM {ceilings.gemm_tflops:.0f} TFLOP/s, copy "
        f"{ceilings.copy_gbps:.0f} GB/s, read {ceilings.read_gbps:.0f} GB/s"
    )
    for line in header(measured.names, measured.peers):
        console.print(line)


def _finish(
    args: argparse.Namespace, measured: Measured, console: Console, wrote: Sequence[Row] = ()
) -> int:
    """What follows the rows; ``wrote``: those that were not printed while they were measured."""
    if wrote:
        _head(measured, console)
        for row in wrote:
            console.print(line_of(row, measured.names, measured.peers), markup=False)
    report(measured, console)
    floor = measured.host_floor_us.items()
    console.print("host floor: " + ", ".join(f"{what} {us:.1f} us" for what, us in floor))
    if args.json:
        text = json.dumps(measured.to_json(), indent=2)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")
    timed = [row for row in measured.rows if row.us]
    if timed and (args.plot or args.roofline):
        from flashmla_hub.bench import plot

        theme = plot.DARK if args.dark else plot.LIGHT
        for draw, path in ((plot.bars, args.plot), (plot.roofline, args.roofline)):
            if path:
                draw(measured, path, theme)
    wrong = any(d > WRONG_ABOVE for row in measured.rows for d in row.difference.values())
    return 1 if wrong or not timed else 0


def header(names: Sequence[str], peers: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    ratios = [f"{n} to best peer" for n in names if n not in peers] if peers else []
    columns = ["shape", *(f"{n} us" for n in names), *ratios]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def line_of(row: Row, names: Sequence[str], peers: Sequence[str]) -> str:
    """One row: microseconds with the rate that limits the shape; then our ratios."""
    cells = [str(row.shape)]
    for name in names:
        if name not in row.us:
            cells.append("-")
            continue
        compute = row.flop / row.bytes > 200  # past the ridge of today's accelerators
        rate = f"{row.tflops(name):.0f} TF" if compute else f"{row.gbps(name):.0f} GB/s"
        wrong = row.difference.get(name, 0.0)
        mark = f" WRONG {wrong:.0e}" if wrong > WRONG_ABOVE else ""
        cells.append(f"{row.us[name]:.1f} ({rate}){mark}")
    for name in names if peers else ():
        if name not in peers:
            value = ratio(row.us, name, peers)
            cells.append("-" if value is None else f"{value:.3f}")
    return f"| {' | '.join(cells)} |"


def report(measured: Measured, console: Console) -> None:
    """Per layer in a graph, host time, the summary of ratios, and what failed."""
    names, peers, rows = measured.names, measured.peers, measured.rows
    for title, field in TIMES_BESIDE:
        timed = [row for row in rows if getattr(row, field)]
        if not timed:
            continue
        console.print(f"\n{title}")
        for line in header(names, peers if field == "graph_us" else ()):
            console.print(line)
        for row in timed:
            times = getattr(row, field)
            cells = [f"{times[n]:.1f}" if n in times else "-" for n in names]
            if field == "graph_us" and peers:
                ratios = [ratio(times, n, peers) for n in names if n not in peers]
                cells += ["-" if value is None else f"{value:.3f}" for value in ratios]
            console.print(f"| {row.shape} | {' | '.join(cells)} |", markup=False)
    console.print()
    for found in summaries(measured):
        console.print(
            f"{found.backend} against {found.against}: geomean {found.geomean:.3f}, worst "
            f"{found.worst:.3f} ({found.worst_shape}), {found.rows} rows",
            markup=False,
        )
    failed = {name: error for row in rows for name, error in row.errors.items()}
    for name, error in failed.items():
        console.print(f"[red]{escape(name)}[/]: {escape(error.splitlines()[0][:300])}")

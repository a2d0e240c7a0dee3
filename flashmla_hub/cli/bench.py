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
from flashmla_hub.bench.results import Row, Summary, ratio, summarize
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the roofline as a PNG")


def run(args: argparse.Namespace) -> int:
    chosen = [shapes.parse(text) for text in args.shape]
    if args.grid or not chosen:
        chosen += shapes.grid(args.grid or "std", args.seed)
    for option in ("json", "plot"):
        if getattr(args, option):
            checked.file(getattr(args, option), f"--{option}")
    device = api.resolve_device(args.device)
    runtime: Any = getattr(torch, device.type, None)
    if device.simulated or not hasattr(runtime, "Event") or not hasattr(runtime, "CUDAGraph"):
        print(
            f"flashmla-hub bench: {device} has no clock to time kernels with; this needs an "
            "accelerator that torch has events and graphs for (flashmla-hub devices lists yours)",
            file=sys.stderr,
        )
        return 2
    return _measure(args, device, chosen)


def _measure(args: argparse.Namespace, device: DeviceInfo, chosen: list[shapes.Shape]) -> int:
    from flashmla_hub.bench.runner import contenders, measure
    from flashmla_hub.bench.timing import DeviceClock

    console = Console(soft_wrap=True)
    field = contenders(device, args.backend, chosen[0])
    if not field:
        console.print(f"no backend to time on {device}: see flashmla-hub backends")
        return 1
    clock = DeviceClock(torch.device(device.type, device.index))
    ceilings = clock.ceilings()
    title = f"{device.name} {device}, torch {torch.__version__}, {device.runtime}"
    console.print(
        f"{title}\nGEMM {ceilings.gemm_tflops:.0f} TFLOP/s, copy {ceilings.copy_gbps:.0f} GB/s, "
        f"read {ceilings.read_gbps:.0f} GB/s"
    )
    names = [contender.name for contender in field]
    peers = [contender.name for contender in field if contender.peer]
    for line in header(names, peers):
        console.print(line)
    rows: list[Row] = []
    floor: dict[str, float] = {}
    stopped = False
    try:
        for row in measure(
            chosen, field, clock, seed=args.seed, reps=args.reps, layers=args.layers
        ):  # fmt: skip
            rows.append(row)
            console.print(line_of(row, names, peers), markup=False)
        floor = clock.host_floor()
    except KeyboardInterrupt:
        stopped = True
    summaries = report(rows, names, peers, console)
    console.print("host floor: " + ", ".join(f"{what} {us:.1f} us" for what, us in floor.items()))
    if args.json:
        facts = {
            "flashmla_hub": __version__,
            "device": title,
            "backends": {c.name: c.backend.info.summary for c in field},
            "peers": peers,
            "command": sys.argv[1:],
            "ceilings": ceilings.to_json(),
            "host_floor_us": floor,
            "rows": [row.to_json() for row in rows],
            "summary": [vars(summary) for summary in summaries],
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n")
    timed = [row for row in rows if row.us]
    if args.plot and timed:
        from flashmla_hub.bench.plot import roofline

        roofline(timed, names, ceilings, title, args.plot)
    if stopped:
        kept = f", written to {args.json}" if args.json else ""
        raise Interrupted(f"{len(rows)} of {len(chosen)} shapes measured{kept}")
    wrong = any(d > WRONG_ABOVE for row in rows for d in row.difference.values())
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


def report(
    rows: Sequence[Row], names: Sequence[str], peers: Sequence[str], console: Console
) -> list[Summary]:
    """Per layer in a graph, host time, the summary of ratios, and what failed."""
    for title, field in (
        ("per layer in a graph, us", "graph_us"),
        ("host time to issue, us", "host_us"),
    ):
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
    summaries: list[Summary] = []
    console.print()
    for field, where in (("us", ""), ("graph_us", " in a graph")):
        for name in (n for n in names if n not in peers):
            for group, label in [*(([p], p) for p in peers), (peers, "the best peer")]:
                found = summarize(rows, name, group, label, field)
                if found and (len(peers) > 1 or label != "the best peer"):
                    summaries.append(found)
                    console.print(
                        f"{name} against {label}{where}: geomean {found.geomean:.3f}, worst "
                        f"{found.worst:.3f} ({found.worst_shape}), {found.rows} rows",
                        markup=False,
                    )
    failed = {name: error for row in rows for name, error in row.errors.items()}
    for name, error in failed.items():
        console.print(f"[red]{escape(name)}[/]: {escape(error.splitlines()[0][:300])}")
    return summaries

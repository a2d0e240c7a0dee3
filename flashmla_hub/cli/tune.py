"""``flashmla-hub tune``: measure this card, keep what is fastest."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flashmla_hub import api, tuning
from flashmla_hub.backend import Backend
from flashmla_hub.bench import shapes
from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import choice_key

HELP = "measure this machine and write its tuning table"
EPILOG = """\
examples:
  flashmla-hub tune                          every backend here, the standard grid of shapes
  flashmla-hub tune --shape 64,1,16,4096     the shapes you serve
  flashmla-hub tune --again                  measure anew what the table has already

For each shape the configurations of the backends that have several are timed first; kept is the one
that is fastest over all shapes that share it. Then the backends are timed against each other. The
table is written after every shape: interrupt it at will, the next run goes on. Delete the file to
forget it.

exit codes: 0 measured (or nothing left to measure), 1 nothing could be timed, 2 wrong use or no
accelerator
"""
MARGIN = 0.98  # a configuration or backend replaces the default only if it is 2 % faster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", choices=shapes.GRIDS, help="default: std, without --shape")
    parser.add_argument(
        "--shape", action="append", default=[], metavar=shapes.FORM,
        help="a shape of your own; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", help="torch device (default: this machine's accelerator)")
    parser.add_argument("--reps", type=int, default=15, metavar="N", help="calls per median")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--again", action="store_true", help="measure known shapes too")
    parser.add_argument("--json", action="store_true", help="one JSON object for each shape")


def run(args: argparse.Namespace) -> int:
    chosen = [shapes.parse(text) for text in args.shape]
    if args.grid or not chosen:
        chosen += shapes.grid(args.grid or "std", args.seed)
    device = api.resolve_device(args.device)
    runtime = getattr(torch, device.type, None)
    if device.simulated or device.type == "cpu" or not hasattr(runtime, "Event"):
        print(
            f"flashmla-hub tune: {device} has no clock to time kernels with; this needs an "
            "accelerator that torch has events for (flashmla-hub devices lists yours)",
            file=sys.stderr,
        )
        return 2
    from flashmla_hub.bench.timing import DeviceClock

    console = Console(soft_wrap=True, quiet=args.json)
    table = Table(device)
    clock = DeviceClock(torch.device(device.type, device.index))
    timed = skipped = 0
    try:
        for number, shape in enumerate(chosen, 1):
            choice = str(choice_of(shape, args.seed))
            if choice in table.measured and not args.again:
                skipped += 1
                continue
            row = tune_shape(shape, device, clock, table, reps=args.reps, seed=args.seed)
            best = fastest(row["us"], default=row["chosen"])
            if best is not None:
                timed += 1
                table.add(choice, best, row["us"])
            if args.json:
                print(json.dumps({"shape": str(shape), "fastest": best, **row}), flush=True)
            ranked = sorted(row["us"].items(), key=lambda pair: pair[1])
            listed = ", ".join(f"{name} {us:.1f}" for name, us in ranked)
            console.print(f"[{number}/{len(chosen)}] {shape}: {listed} us", markup=False)
            for name, config in row["configs"].items():
                console.print(f"    {name}: {config}", markup=False)
            for name, error in row["errors"].items():
                console.print(f"    {name}: {error}", markup=False)
    except KeyboardInterrupt:
        kept = f"{timed} measured and kept in {table.path}, {skipped} known already"
        raise Interrupted(f"{kept}; the next run goes on") from None
    console.print(f"{timed} measured, {skipped} known already: {table.path}", markup=False)
    return 0 if timed or skipped else 1


def choice_of(shape: shapes.Shape, seed: int) -> Any:
    width = -(-max(shape.lengths(seed)) // shapes.PAGE)
    return choice_key(shape.key, shape.batch, width * shapes.PAGE)


def tune_shape(
    shape: shapes.Shape, device: DeviceInfo, clock: Any, table: Table, *, reps: int, seed: int
) -> dict[str, Any]:
    """Times of every backend for ``shape``, the configurations kept, and what failed."""
    from flashmla_hub.bench.runner import contenders

    case = shapes.make_case(shape, seed, clock.device)
    decision = api.explain(choice_of(shape, seed), device=device)
    row: dict[str, Any] = {"us": {}, "configs": {}, "errors": {}, "chosen": decision.selected}
    calls: dict[str, Callable[[], object]] = {}
    for contender in contenders(device, (), shape):
        try:
            label = _tune_backend(
                contender.backend, case, device, clock, table, reps, row["errors"]
            )
            if label is not None:
                row["configs"][contender.name] = label
            call = contender.make(case)
            call()
            clock.synchronize()
            calls[contender.name] = call
        except Exception as error:  # one backend's failure must not end the others' measurement
            row["errors"][contender.name] = f"{type(error).__name__}: {error}"[:200]
    if calls:
        row["us"] = clock.interleaved(calls, reps)
    return row


def _tune_backend(
    backend: Backend, case: shapes.Case, device: DeviceInfo, clock: Any, table: Table, reps: int,
    errors: dict[str, str],
) -> str | None:  # fmt: skip
    """The label of the backend's best configuration, kept; None for a backend that has but one.

    A backend takes part by two methods: ``trials(key, device)``, labels with functions that bind
    (the first is the default), and ``keep(key, device, label)``. ``trial_group(key, device)``
    names the requests that share a configuration, if more than those of equal key do.
    """
    trials = getattr(backend, "trials", None)
    if trials is None:
        return None
    key = case.shape.key
    calls: dict[str, Callable[[], object]] = {}
    offered = trials(key, device)
    for label, bind in offered.items():
        try:
            calls[label] = case.call(bind())
            calls[label]()
            clock.synchronize()
        except Exception as error:  # a configuration may not fit this card
            calls.pop(label, None)
            errors[f"{backend.name} {label}"] = f"{type(error).__name__}: {error}"[:200]
    if not calls:
        return None
    group_of = getattr(backend, "trial_group", lambda key, device: key.summary())
    known = table.trials.setdefault(backend.name, {}).setdefault(group_of(key, device), {})
    known[str(case.shape)] = clock.interleaved(calls, reps)
    best = fastest(over_all(known.values()), default=next(iter(offered)))
    assert best is not None
    backend.keep(key, device, best)  # type: ignore[attr-defined]
    return best


def fastest(times: Mapping[str, float], default: str | None) -> str | None:
    """The quickest name; ``default`` unless another is clearly quicker. None without times."""
    if not times:
        return None
    best = min(times, key=lambda name: times[name])
    if default is not None and default in times and times[best] > MARGIN * times[default]:
        return default
    return best


def over_all(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Geometric mean of each label's times over the rows, for labels that every row has. Where they
    share none, the last row stands for itself."""
    rows = list(rows)
    common = [label for label in rows[-1] if all(label in row for row in rows)]
    if not common:
        return dict(rows[-1])
    return {label: statistics.geometric_mean(row[label] for row in rows) for label in common}


class Table:
    """The machine's tuning table on disk, replaced whole after every shape.

    ``trials``: by backend, by group of requests, by shape, the times of each configuration.
    """

    def __init__(self, device: DeviceInfo) -> None:
        self.path: Path | None = tuning.path_for(device)
        self.preferred: dict[str, str] = {}
        self.measured: dict[str, dict[str, float]] = {}
        self.trials: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        try:
            found = tuning.read_json(self.path, tuning.VERSION)
            self.preferred, self.measured = found["preferred"], found["measured"]
            self.trials = found["trials"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no table yet, or one that nothing could be read from

    def add(self, choice: str, best: str, times: Mapping[str, float]) -> None:
        self.preferred[choice], self.measured[choice] = best, dict(times)
        table = {
            "version": tuning.VERSION, "preferred": self.preferred, "measured": self.measured,
            "trials": self.trials,
        }  # fmt: skip
        tuning.write_json(self.path, table)

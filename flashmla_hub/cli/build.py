"""``flashmla-hub build``: compile kernels before their first use (in an image, before serving)."""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flashmla_hub import api, registry
from flashmla_hub.backend import Backend, BuildItem
from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import InvalidRequestError

HELP = "compile kernels ahead of their first use"
EPILOG = """\
examples:
  flashmla-hub build                                  all kernels of this machine's backends
  flashmla-hub build --list                           what there is to build, building nothing
  flashmla-hub build --list --device VENDOR:ARCH      the same for a simulated device

exit codes: 0 all built (or nothing to build), 1 something failed, 2 wrong use
"""


@dataclass(frozen=True)
class Job:
    """One item of one backend on one device."""

    backend: Backend
    device: DeviceInfo
    item: BuildItem


@dataclass(frozen=True)
class Outcome:
    job: Job
    seconds: float
    error: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "backend": self.job.backend.name,
            "device": f"{self.job.device.type}:{self.job.device.index}",
            "item": self.job.item.name,
            "seconds": round(self.seconds, 3),
            "error": self.error,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="name the kernels, build nothing")
    parser.add_argument("--backend", metavar="NAME", help="this backend only")
    parser.add_argument(
        "--device", metavar="DEVICE", help="torch device, or VENDOR[:ARCH] with --list"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    devices = [api.resolve_device(args.device)] if args.device else api.devices()
    if any(device.simulated for device in devices) and not args.list:
        raise InvalidRequestError("--device", args.device, "a device of this machine, or --list")
    found = jobs(devices, args.backend)
    if args.list:
        return _list(found, args.json)
    lacking = {
        (job.backend.name, reason)
        for job in found
        for reason in job.backend.environment_reasons(job.device)
    }
    if lacking:
        for name, reason in sorted(lacking):
            Console(stderr=True).print(f"{name}: {reason}", style="red", markup=False)
        return 1
    outcomes = build(found, Console(stderr=args.json))
    if args.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], indent=2))
    else:
        _report(outcomes, devices)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def jobs(devices: list[DeviceInfo], backend: str | None = None) -> list[Job]:
    """What every backend (or the one named) would compile on ``devices``.

    Raises:
        InvalidRequestError: there is no backend of that name.
    """
    known = registry.state().backends
    chosen = [registry.get(backend)] if backend else list(known.values())
    return [Job(b, d, item) for d in devices for b in chosen for item in b.build_items(d)]


def build(found: list[Job], console: Console, workers: int | None = None) -> list[Outcome]:
    """Bind every item, those that may in parallel; what fails does not stop the rest."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    together = [job for job in found if job.item.concurrent]
    alone = [job for job in found if not job.item.concurrent]
    outcomes = []
    with Progress(*columns, console=console, disable=not found) as progress:
        task = progress.add_task("compiling", total=len(found))

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.update(task, description=outcome.job.item.name, advance=1)

        pool = ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))
        try:
            # the settings in force are of this thread's context
            waiting = [pool.submit(copy_context().run, _bind, job) for job in together]
            for future in as_completed(waiting):
                done(future.result())
            for job in alone:
                done(_bind(job))
        except KeyboardInterrupt:
            good = sum(not outcome.error for outcome in outcomes)
            raise Interrupted(f"{good} of {len(found)} built, and kept in the cache") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return sorted(outcomes, key=lambda outcome: found.index(outcome.job))


def _bind(job: Job) -> Outcome:
    started = time.perf_counter()
    try:
        job.backend.bind(job.item.key, job.device)
        error = ""
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Outcome(job, time.perf_counter() - started, error)


def _list(found: list[Job], as_json: bool) -> int:
    if as_json:
        rows = [{"backend": j.backend.name, "device": str(j.device), "item": j.item.name,
                 "key": j.item.key.summary()} for j in found]  # fmt: skip
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("backend", "device", "kernel")
    for job in found:
        table.add_row(job.backend.name, str(job.device), job.item.name)
    Console().print(table if found else "no backend compiles kernels for this device")
    return 0


def _report(outcomes: list[Outcome], devices: list[DeviceInfo]) -> None:
    console = Console()
    if not outcomes:
        where = ", ".join(map(str, devices))
        console.print(f"nothing to build: no backend compiles kernels for {where}")
        return
    for outcome in outcomes:
        if outcome.error:
            line = f"{outcome.job.item.name}: {outcome.error}"
            console.print(line, style="red", markup=False)
    built = sum(not outcome.error for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    console.print(
        f"{built} of {len(outcomes)} built; the slowest, {slowest.job.item.name}, took "
        f"{slowest.seconds:.1f} s"
    )

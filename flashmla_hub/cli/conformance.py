"""``flashmla-hub conformance``: judge a backend against the contract, and leave evidence."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flashmla_hub.errors import InvalidRequestError

HELP = "judge a backend against the contract"
EPILOG = """\
examples:
  flashmla-hub conformance --backend torch                     up to level L1
  flashmla-hub conformance --backend torch --level L4 --report out/
  flashmla-hub conformance --backend my_port --device cuda --isolate
  flashmla-hub conformance --backend my_port -k C1.7           cases of one clause
  flashmla-hub conformance --call my_module:flash_mla_with_kvcache

A case that fails names the clause it breaks, the first wrong element, and, where a known mistake
reproduces the output, that mistake. docs/conformance.md says what a level means.

exit codes: 0 the level was reached (with -k: nothing failed), 1 not, 2 wrong use
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--backend", help="name of a registered backend")
    target.add_argument(
        "--call", metavar="MODULE:FUNCTION", help="a bare flash_mla_with_kvcache, without a plugin"
    )
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument(
        "--level", default="L1", choices=("L0", "L1", "L2", "L3", "L4"),
        help="run the cases up to this level (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="DIR", help="write evidence and report here")
    parser.add_argument(
        "-k", dest="select", default="", metavar="WORDS",
        help="only cases whose id, clauses or check have all these words; reaches no level",
    )  # fmt: skip
    parser.add_argument(
        "--known-failures", type=Path, metavar="FILE", help="lines of 'case id | reason'"
    )
    parser.add_argument(
        "--isolate", action="store_true",
        help="run cases in subprocesses, so that one that hangs or crashes costs itself alone",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=60.0, metavar="S",
        help="with --isolate, seconds a case may take (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="other inputs than the frozen ones; reaches no level"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and run nothing")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def run(args: argparse.Namespace) -> int:
    # the kit stands outside the core: it is imported when it is asked for
    from flashmla_hub.conformance import known, runner
    from flashmla_hub.conformance.cases import cases_of
    from flashmla_hub.conformance.model import to_json

    out = Console()
    try:
        torch.device(args.device)
        failures = known.load(args.known_failures) if args.known_failures else {}
    except RuntimeError as error:
        raise InvalidRequestError("--device", args.device, "a torch device") from error
    except (ValueError, OSError) as error:
        raise InvalidRequestError("--known-failures", error, "lines of 'id | reason'") from error
    options = runner.Options(
        level=args.level, device=args.device, select=args.select, seed=args.seed,
        isolate=args.isolate, limit=args.limit, known_failures=failures,
    )  # fmt: skip
    cases = runner.selected(cases_of(args.level), options)
    if not cases:
        raise InvalidRequestError("-k", repr(args.select), "words that some case has; see --list")
    if args.list:
        for case in cases:
            out.print(f"{case.level}  {case.id}  {' '.join(case.clauses)}", highlight=False,
                      markup=False, soft_wrap=True)  # fmt: skip
        return 0
    result = _observed(runner, args, options)
    if args.json:
        print(json.dumps(to_json(result)))
    else:
        _print(out, result)
    if args.report:
        from flashmla_hub.conformance.report import write_report

        paths = write_report(result, args.report)
        if not args.json:
            out.print(f"wrote {', '.join(p.name for p in paths)} to {args.report}", markup=False)
    return _code(result, args)


def _observed(runner: Any, args: argparse.Namespace, options: Any) -> Any:
    """The run, with a line of progress and the time left on a terminal's stderr."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=None)

        def observe(done: int, total: int, result: Any) -> None:
            progress.update(task, completed=done, total=total, description=escape(result.id))
            if result.outcome.bad:
                words = f"{result.outcome.value}  {result.id}  {result.diagnosis}"
                progress.console.print(words, markup=False, highlight=False)

        return runner.run(args.call or args.backend, options, call=bool(args.call),
                          observe=observe)  # fmt: skip


def _print(out: Console, result: Any) -> None:
    table = Table(
        title=f"{result.meta.backend} on {result.meta.device['name']}",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("level")
    for name in ("needs", "native", "rewritten", "failed", "not claimed", "not run", "known"):
        table.add_column(name, justify="right")
    table.add_column("")
    for level in result.levels:
        if level.level <= result.meta.level:
            word = "reached" if level.reached else "not reached"
            counts = (level.needed, level.native, level.rewritten, level.failed,
                      level.not_claimed, level.not_reached, level.known_failures)  # fmt: skip
            table.add_row(level.level, *map(str, counts), word)
    out.print(table)
    for case in result.results:
        if case.outcome.bad:
            what = f" - {case.diagnosis}" if case.diagnosis else ""
            out.print(f"\n{case.id}: {case.outcome.value}, {case.clause}{what}", style="bold",
                      markup=False, highlight=False)  # fmt: skip
            out.print(f"  {case.reason}", markup=False, highlight=False)
    for name in result.meta.stale_known_failures:
        out.print(f"\n{name}: listed as a known failure, and does not fail; take it off the list",
                  style="bold", markup=False)  # fmt: skip
    outcomes = Counter(case.outcome.value for case in result.results)
    words = ", ".join(f"{n} {word.replace('_', ' ')}" for word, n in outcomes.most_common())
    out.print(f"\n{words}", highlight=False)
    why = next((level.why_not for level in result.levels if not level.reached), "")
    below = f"; next level: {why}" if why and result.level != result.meta.level else ""
    out.print(f"badge: {result.badge or 'none'}{below}", markup=False, highlight=False)


def _code(result: Any, args: argparse.Namespace) -> int:
    bad = any(case.outcome.bad for case in result.results) or result.meta.stale_known_failures
    partial = args.select or args.seed or result.meta.known_failures
    reached = next(level.reached for level in result.levels if level.level == args.level)
    return int(bool(bad) or not (reached or partial))

"""``flashmla-hub conformance``: judge a backend against the contract, and leave evidence."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flashmla_hub.cli import checked
from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.errors import InvalidRequestError

HELP = "judge a backend against the contract"
EPILOG = """\
examples:
  flashmla-hub conformance --backend torch                     up to level L1
  flashmla-hub conformance --backend torch --level L4 --report out/
  flashmla-hub conformance --backend my_port --device cuda --isolate
  flashmla-hub conformance --backend my_port -k C1.7           cases of one clause
  flashmla-hub conformance --backend my_port --challenge 'a nonce'   inputs of who asks
  flashmla-hub conformance --call my_module:flash_mla_with_kvcache

Failures are shown by cause: the clause, the first wrong element, and, where a known mistake
reproduces the output, that mistake. docs/conformance.md says what a level means.

exit codes: 0 the level was reached (with -k: nothing failed), 1 not, 2 wrong use
"""
LIMIT = 60.0


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
        "--limit", type=float, metavar="S",
        help=f"with --isolate, seconds a case may take ({LIMIT:g})",
    )  # fmt: skip
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        "--seed", type=int, default=0, help="other inputs than the frozen ones; reaches no level"
    )
    inputs.add_argument(
        "--challenge", default="", metavar="NONCE",
        help="inputs drawn from these words of whoever asks; reaches levels",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the cases and run nothing")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def run(args: argparse.Namespace) -> int:
    # the kit stands outside the core: it is imported when it is asked for
    from flashmla_hub.conformance import runner
    from flashmla_hub.conformance.cases import cases_of

    options = _options(args)
    cases = runner.selected(cases_of(args.level), options)
    if not cases:
        raise InvalidRequestError("-k", repr(args.select), "words that some case has; see --list")
    if args.list:
        return _list(cases, args.json)
    checked.device(args.device)
    checked.backend(args.backend)
    if args.report:  # before the run: nobody wants to find out after it
        checked.folder(args.report, "--report")
    out, stopped = Console(), None
    try:
        result = _observed(runner, args, options)
    except runner.Interrupted as stop:
        result, stopped = stop.result, stop
    if args.json:
        from flashmla_hub.conformance.model import to_json

        print(json.dumps(to_json(result)))
    else:
        _print(out, result)
    if args.report:
        from flashmla_hub.conformance.report import write_report

        paths = write_report(result, args.report)
        if not args.json:
            _line(out, f"wrote {', '.join(p.name for p in paths)} to {args.report}")
    if stopped is not None:
        raise Interrupted(f"{stopped}{f', written to {args.report}' if args.report else ''}")
    return _code(result, args)


def _options(args: argparse.Namespace) -> Any:
    """The run's options, or InvalidRequestError naming the one that is wrong."""
    from flashmla_hub.conformance import challenge, known, runner

    if args.limit is not None and not args.isolate:
        raise InvalidRequestError("--limit", f"{args.limit:g} alone", "it beside --isolate")
    if args.limit is not None and not args.limit > 0:
        raise InvalidRequestError("--limit", f"{args.limit:g}", "seconds > 0")
    if args.seed < 0:
        raise InvalidRequestError("--seed", args.seed, "a number >= 0")
    if why := challenge.fault(args.challenge):
        raise InvalidRequestError("--challenge", ascii(args.challenge)[:80], why)
    try:
        failures = known.load(args.known_failures) if args.known_failures else {}
    except (ValueError, OSError) as error:
        raise InvalidRequestError("--known-failures", error, "lines of 'id | reason'") from error
    return runner.Options(
        level=args.level, device=args.device, select=args.select, seed=args.seed,
        challenge=args.challenge, isolate=args.isolate, limit=args.limit or LIMIT,
        known_failures=failures,
    )  # fmt: skip


def _list(cases: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps([{"id": c.id, "level": c.level, "clauses": c.clauses} for c in cases]))
    else:
        for case in cases:
            print(f"{case.level}  {case.id}  {' '.join(case.clauses)}")
    return 0


def _observed(runner: Any, args: argparse.Namespace, options: Any) -> Any:
    """The run, with a line of progress and the time left on a terminal's stderr."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bad = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=None)

        def observe(done: int, total: int, result: Any) -> None:
            nonlocal bad
            bad += result.outcome.bad
            words = f"{bad} failed, {result.id}" if bad else result.id
            progress.update(task, completed=done, total=total, description=escape(words))

        return runner.run(args.call or args.backend, options, call=bool(args.call),
                          observe=observe)  # fmt: skip


def _line(out: Console, text: str, style: str = "") -> None:
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _print(out: Console, result: Any) -> None:
    """Levels, failures by cause, counts, badge; plain lines, so that no terminal cuts one."""
    from flashmla_hub.conformance.quoting import plain
    from flashmla_hub.conformance.report import grouping

    meta = result.meta
    version = f", version {plain(meta.backend_version)}" if meta.backend_version else ""
    simulated = " (simulated: no statement about hardware)" if meta.device["simulated"] else ""
    _line(out, f"{plain(meta.backend)}{version}, on {plain(str(meta.device['name']))}{simulated}")
    for level in result.levels:
        if level.level <= meta.level:
            _line(out, f"  {level.level}  {_state(level, meta)}")
    _line(out, "Each level counts the cases of the levels below it too.")
    families = ", ".join(f"{f.family} {f.level or 'none'}" for f in result.families)
    if families:
        _line(out, f"By family: {families}")
    found = grouping.findings(result.results)
    if advice := grouping.advice(found):
        _line(out, f"\n{plain(advice)}", "bold")
    for finding in found:
        first, clauses = finding.first, ", ".join(finding.clauses)
        cases = "1 case" if finding.count == 1 else f"{finding.count} cases"
        _line(out, f"\n{plain(finding.title)} ({clauses}), {cases}", "bold")
        _line(out, f"  {first.id}: {plain(first.reason)}")
        if finding.others:
            _line(out, f"  also {grouping.ids(finding.others)}")
    for name in meta.stale_known_failures:
        words = "listed as a known failure, and does not fail; take it off the list"
        _line(out, f"\n{plain(name)}: {words}", "bold")
    words = ", ".join(f"{n} {word}" for word, _, n in grouping.counts(result))
    _line(out, f"\n{words}")
    _line(out, f"badge: {result.badge or 'none'}{_below(result)}")


def _state(level: Any, meta: Any) -> str:
    """``reached, 116 of 116: 81 native, 35 through rewrites``."""
    good = level.native + level.rewritten
    state = "reached" if level.reached else "not reached"
    if meta.selected:
        state = "not judged (-k)"
    elif meta.seed:
        state = "not judged (--seed)"
    parts = [f"{level.rewritten} of them through rewrites"] if level.rewritten else []
    for count, word in ((level.failed, "failed"), (level.not_claimed, "not claimed"),
                        (level.not_reached, "could not run"),
                        (level.known_failures, "known failures")):  # fmt: skip
        if count:
            parts.append(f"{count} {word}")
    return f"{state}, {good} of {level.needed} cases{': ' if parts else ''}{', '.join(parts)}"


def _below(result: Any) -> str:
    meta = result.meta
    if meta.selected:
        return "; a run of selected cases (-k) reaches no level"
    if meta.seed:
        return "; a run with --seed reaches no level"
    why = next((level.why_not for level in result.levels if not level.reached), "")
    return f"; next level: {why}" if why and result.level != meta.level else ""


def _code(result: Any, args: argparse.Namespace) -> int:
    bad = any(case.outcome.bad for case in result.results) or result.meta.stale_known_failures
    partial = args.select or args.seed or result.meta.known_failures
    reached = next(level.reached for level in result.levels if level.level == args.level)
    return int(bool(bad) or not (reached or partial))

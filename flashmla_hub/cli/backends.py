"""``flashmla-hub backends``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashmla_hub import api
from flashmla_hub.api import BackendStatus

HELP = "every backend: ready, unavailable or quarantined, and why"
EPILOG = """\
examples:
  flashmla-hub backends               what is ready here, and what the others are for
  flashmla-hub backends --limits      what each takes, which package, what it was run on

exit codes: 0, also where a plugin is quarantined
"""

_STYLE = {"ready": "green", "unavailable": "yellow", "quarantined": "red"}
_ELSEWHERE = "for other devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limits", action="store_true", help="what each takes, and how sure it is")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    found = api.backends()
    if args.json:
        print(json.dumps([dataclasses.asdict(backend) for backend in found], indent=2))
    elif args.limits:
        _limits(found, Console())
    else:
        _short(found, Console())
    return 0


def _short(found: Sequence[BackendStatus], console: Console) -> None:
    """A line for each, grouped by status; names and commands are never cut."""
    groups: dict[str, list[tuple[str, str]]] = {"ready": [], "unavailable": [], "quarantined": []}
    for backend in found:
        takes, here, _ = backend.reason.partition("; here: ")
        if here and backend.status == "unavailable" and takes.startswith("takes "):
            groups.setdefault(_ELSEWHERE, []).append((backend.name, takes.removeprefix("takes ")))
        else:
            groups[backend.status].append((backend.name, backend.reason))
    wide = max(len(backend.name) for backend in found)
    for title, members in groups.items():
        if not members:
            continue
        console.print(Text(f"{title} ({len(members)})", f"bold {_STYLE.get(title, '')}".strip()))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=wide + 2, no_wrap=True)
        grid.add_column()
        for name, reason in members:
            grid.add_row(f"  {name}", Text(reason))
        console.print(grid)
    console.print("[dim]what each takes: flashmla-hub backends --limits[/]", highlight=False)


def _limits(found: Sequence[BackendStatus], console: Console) -> None:
    """A paragraph for each."""
    for backend in found:
        info = backend.info
        status = Text(backend.status, _STYLE[backend.status])
        console.print(Text(backend.name, "bold"), status, Text(info.vendor, "dim"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=12, no_wrap=True)
        grid.add_column()
        verified = info.verified or ("not run on hardware" if info.vendor else "")
        for label, words in (
            ("why", backend.reason),
            *(("takes" if i == 0 else "", text) for i, text in enumerate(backend.limits)),
            ("package", " ".join(filter(None, (info.package or backend.dist, info.versions)))),
            ("confidence", info.confidence),
            ("verified", verified),
        ):
            if words:
                grid.add_row(f"  {label}", Text(words))
        console.print(grid)
        console.print()

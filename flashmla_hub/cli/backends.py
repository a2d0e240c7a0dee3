"""``flashmla-hub backends``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashmla_hub import api

HELP = "every backend: ready, unavailable or quarantined, and why"

_STYLE = {"ready": "green", "unavailable": "yellow", "quarantined": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limits", action="store_true", help="what each takes, and how sure it is")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    found = api.backends()
    if args.json:
        print(json.dumps([dataclasses.asdict(backend) for backend in found], indent=2))
        return 0
    table = Table("backend", "status and reason", "package, versions known", "verified on")
    for backend in found:
        status = f"[{_STYLE[backend.status]}]{backend.status}[/] {escape(backend.reason)}"
        info = backend.info
        origin = " ".join(filter(None, (info.package or backend.dist, info.versions)))
        verified = info.verified or ("not run on hardware" if info.vendor else "")
        if args.limits:
            status += f"\n[dim]takes {escape('; '.join(backend.limits) or 'nothing')}[/]"
            verified += f"\nconfidence {info.confidence}"
        name = f"{backend.name}\n[dim]{escape(info.vendor)}[/]" if info.vendor else backend.name
        table.add_row(name, status, escape(origin), verified.strip())
    Console().print(table)
    if not args.limits:
        Console().print("[dim]what each takes: flashmla-hub backends --limits[/]", highlight=False)
    return 0

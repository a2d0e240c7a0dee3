"""``flashmla-hub backends``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from flashmla_hub import api

HELP = "every backend: ready, unavailable or quarantined, and why"

_STYLE = {"ready": "green", "unavailable": "yellow", "quarantined": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    found = api.backends()
    if args.json:
        print(json.dumps([dataclasses.asdict(backend) for backend in found], indent=2))
        return 0
    table = Table("backend", "status", "reason", "from", "verified on")
    for backend in found:
        status = f"[{_STYLE[backend.status]}]{backend.status}[/]"
        origin = f"{backend.dist} {backend.version}".strip()
        verified = backend.info.verified or ("not run on hardware" if backend.info.vendor else "")
        table.add_row(backend.name, status, backend.reason, origin, verified)
    Console().print(table)
    return 0

"""``flashmla-hub devices``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from flashmla_hub import api

HELP = "the devices of this machine and how each was identified"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    found = api.devices()
    if args.json:
        print(json.dumps([dataclasses.asdict(device) for device in found], indent=2))
        return 0
    table = Table("device", "vendor", "arch", "name", "confidence", "identified by")
    for device in found:
        where = f"{device.type}:{device.index}"
        table.add_row(
            where, device.vendor, device.arch, device.name, device.confidence, device.rule
        )
    Console().print(table)
    return 0

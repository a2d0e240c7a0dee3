"""The command ``flashmla-hub``: one module for each command, imported when it is asked for.

A command module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int``.
Exit codes: 0 fine, 1 the check failed, 2 wrong use, 3 a fault of the hub's, 130 interrupted
(``ending.py``).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from flashmla_hub.cli.ending import WRONG_USE, ends_in_one_line
from flashmla_hub.version import __version__

# name -> (module, what it does); the module is imported only when the command is used
COMMANDS = {
    "demo": ("demo", "decode a DeepSeek-V3 model through the hub and compare with transformers"),
    "devices": ("devices", "the devices of this machine and how each was identified"),
    "backends": ("backends", "every backend: ready, unavailable or quarantined, and why"),
    "explain": ("explain", "which backend would serve a request on a device, and why"),
    "doctor": ("doctor", "everything a bug report needs"),
    "new-backend": ("new_backend", "write an installable plugin package to start a backend from"),
    "conformance": ("conformance", "judge a backend against the contract"),
    "verify": ("verify", "check an evidence file, on any machine"),
    "board": ("board", "one page of verdicts from a folder of evidence files"),
    "build": ("build", "compile kernels ahead of their first use"),
    "bench": ("bench", "time every available backend side by side"),
    "tune": ("tune", "measure this machine and write its tuning table"),
}

EPILOG = """\
start with:
  flashmla-hub demo                  a real model, decoded through the hub
  flashmla-hub backends              what is installed here
  flashmla-hub explain --h-q 12      which one serves a request, and why

exit codes: 0 fine, 1 the check failed, 2 wrong use, 3 a fault of the hub's own, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(words)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return WRONG_USE
    return ends_in_one_line(
        f"flashmla-hub {args.command}", lambda: int(_load(args.command).run(args))
    )


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashmla-hub",
        description="DeepSeek's MLA decode attention on whatever accelerator is there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flashmla-hub {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == wanted:
            module = _load(name)
            command.epilog = getattr(module, "EPILOG", None)
            module.add_arguments(command)
    return parser


def _load(name: str) -> Any:
    return importlib.import_module(f"flashmla_hub.cli.{COMMANDS[name][0]}")

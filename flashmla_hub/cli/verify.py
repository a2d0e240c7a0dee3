"""``flashmla-hub verify evidence.json``: recompute what an evidence file says; no accelerator."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HELP = "recompute an evidence file: inputs, outputs, level; needs no accelerator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("evidence", type=Path, help="evidence.json of a conformance run")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="recompute this random share of the cases, 0 < SHARE <= 1 (default: all)",
    )
    parser.add_argument("--seed", type=int, help="of the random share; printed when left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 verified (also when stale), 1 something does not hold, 2 wrong use."""
    from flashmla_hub.conformance import verify  # numpy, needed for this command alone

    if not 0 < args.share <= 1:
        print(f"--share: got {args.share}, expected 0 < SHARE <= 1", file=sys.stderr)
        return 2
    try:
        text = args.evidence.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    progress = None if args.json or not sys.stderr.isatty() else _Progress()
    result = verify.verify(text, share=args.share, seed=args.seed, progress=progress)
    if progress:
        progress.clear()
    print(json.dumps(result.to_json(), indent=1) if args.json else verify.summary(result))
    return 0 if result.ok else 1


class _Progress:
    """One line on stderr: cases done and the time left."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        spent = time.monotonic() - self.started
        left = f", {spent / done * (total - done):.0f} s left" if done else ""
        print(f"\r{done} of {total} cases recomputed{left}\x1b[K", end="", file=sys.stderr)

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

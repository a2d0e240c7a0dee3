"""``flashmla-hub board FOLDER``: evidence files as one page of verdicts."""

from __future__ import annotations

import argparse
from pathlib import Path

from flashmla_hub.cli import checked
from flashmla_hub.errors import InvalidRequestError

HELP = "one page of verdicts from a folder of evidence files"
EPILOG = """\
examples:
  flashmla-hub board conformance/results               the page in Markdown
  flashmla-hub board conformance/results --out docs    docs/board.md and docs/board.html

Every file is verified first; one that does not hold is shown as that.
exit codes: 0 every file holds, 1 one does not, 2 wrong use
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the evidence files are")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write board.md and board.html here"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="recompute this share of each file (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    from flashmla_hub.conformance.report import board  # the kit: imported when it is asked for

    if not 0 < args.share <= 1:
        raise InvalidRequestError("--share", args.share, "0 < SHARE <= 1")
    if not args.folder.is_dir():
        raise InvalidRequestError("folder", ascii(str(args.folder)), "a folder of evidence files")
    if args.out:
        checked.folder(args.out, "--out")
    found = board.entries(args.folder, args.share)
    if not found:
        raise InvalidRequestError("folder", ascii(str(args.folder)), "one with *.json in it")
    if args.out:
        paths = board.write(found, args.out)
        print(f"wrote {' and '.join(map(str, paths.values()))}: {len(found)} files")
    else:
        print(board.markdown(found), end="")
    return int(any(entry.state == "refused" for entry in found))

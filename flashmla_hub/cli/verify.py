"""``flashmla-hub verify evidence.json``: recompute what an evidence file says; no accelerator."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.errors import InvalidRequestError

HELP = "recompute an evidence file: inputs, outputs, level; needs no accelerator"
EPILOG = """\
examples:
  flashmla-hub verify evidence.json                           every recorded output
  flashmla-hub verify evidence.json --share 0.1               a random tenth of the cases
  flashmla-hub verify evidence.json --challenge 'my words'    made with the inputs that I asked for
  flashmla-hub verify evidence.json --signer allowed_signers   signed by one of them (.sig)

to sign: flashmla-hub verify evidence.json --canonical |
           ssh-keygen -Y sign -f ~/.ssh/id_ed25519 -n flashmla_hub-evidence > evidence.json.sig

exit codes: 0 verified (also when stale), 1 not (also when of an older contract), 2 wrong use
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("evidence", type=Path, help="evidence.json of a conformance run")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="recompute this random share of the cases, 0 < SHARE <= 1 (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, help="of the random share; left out, one nobody could know"
    )
    parser.add_argument(
        "--challenge", metavar="NONCE", help="the words whose inputs the evidence must be of"
    )
    parser.add_argument(
        "--signer", type=Path, metavar="FILE",
        help="demand a signature, EVIDENCE.sig, by a key of this file (ssh's allowed signers)",
    )  # fmt: skip
    parser.add_argument(
        "--canonical", action="store_true", help="print the bytes that are signed, and do no more"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 verified (also when stale), 1 something does not hold or is older; 2 wrong use."""
    from flashmla_hub.conformance import verify  # numpy, needed for this command alone
    from flashmla_hub.conformance.challenge import fault
    from flashmla_hub.conformance.quoting import quoted

    if not 0 < args.share <= 1:
        raise InvalidRequestError("--share", args.share, "0 < SHARE <= 1")
    if args.challenge is not None and (not args.challenge or fault(args.challenge)):
        why = fault(args.challenge) or "a word that nobody knew before"
        raise InvalidRequestError("--challenge", quoted(args.challenge), why)
    try:
        text = verify.read(args.evidence)
        if args.canonical:
            return _canonical(text)
    except verify.Unreadable as error:
        name = quoted(args.evidence)
        raise InvalidRequestError("evidence", f"{name} ({error})", "a file of --report") from None
    progress = _Progress(shown=not args.json and sys.stderr.isatty())
    try:
        result = verify.verify(
            text, args.share, args.seed, progress, challenge=args.challenge,
            path=args.evidence, signers=args.signer,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"{progress.done} of {progress.total} cases recomputed") from None
    finally:
        progress.clear()
    print(json.dumps(result.to_json(), indent=1) if args.json else verify.summary(result))
    return 0 if result.ok else 1


def _canonical(text: str) -> int:
    from flashmla_hub.conformance.verify.reading import parse
    from flashmla_hub.conformance.verify.signature import canonical_bytes

    sys.stdout.write(canonical_bytes(parse(text)).decode("ascii"))
    return 0


class _Progress:
    """One line on stderr where it is a terminal: cases done and the time left."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.started = shown, time.monotonic()
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self.shown:
            spent = time.monotonic() - self.started
            left = f", {spent / done * (total - done):.0f} s left" if done else ""
            print(f"\r{done} of {total} cases recomputed{left}\x1b[K", end="", file=sys.stderr)

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

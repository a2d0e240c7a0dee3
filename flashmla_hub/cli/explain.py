"""``flashmla-hub explain``: the decision for any shape on any device, simulated ones included."""

from __future__ import annotations

import argparse
import json
import textwrap
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashmla_hub import api, kv_format, narrate, request, validation
from flashmla_hub.checks import DTYPE_NAMES
from flashmla_hub.decision import Decision
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.request import KernelKey, choice_key

HELP = "which backend would serve a request on a device, and why"
EPILOG = """\
examples:
  flashmla-hub explain                                   this machine, the base shape
  flashmla-hub explain --device amd:gfx942 --h-q 12      a simulated device
  flashmla-hub explain --topk 2048 --kv-format v32       sparse decode over an FP8 cache
  flashmla-hub explain --all                             every backend with all its reasons

exit codes: 0 a backend is selected, 1 none is, 2 wrong use
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="VENDOR[:ARCH]",
        help="device to simulate, or a torch device of this machine (default: this machine's)",
    )
    parser.add_argument("--op", choices=request.OPS, help="default: by --topk")
    for name, low, value, text in (
        ("batch", 1, 1, "requests in the batch (%(default)s)"),
        ("s-q", 1, 1, "query tokens per request (%(default)s)"),
        ("h-q", 1, 128, "query heads (%(default)s)"),
        ("h-kv", 1, 1, "KV heads (%(default)s)"),
        ("d-qk", 1, None, "head dim of q and K (default: 576, or what --kv-format has)"),
        ("d-v", 1, None, "head dim of V (default: what goes with --d-qk)"),
        ("s-k", 1, 4096, "tokens per request that the block table has room for (%(default)s)"),
        ("page-size", 1, 64, "tokens per page (%(default)s)"),
        ("topk", 0, 0, "width of indices; 0: dense (%(default)s)"),
        ("extra-topk", 0, 0, "width of the second cache's indices (%(default)s)"),
        ("extra-page-size", 1, 64, "tokens per page of the second cache (%(default)s)"),
    ):
        kind = partial(_count, low)
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=text)
    parser.add_argument("--dtype", choices=tuple(DTYPE_NAMES.values()), default="bfloat16",
                        help="of q and out (%(default)s)")  # fmt: skip
    parser.add_argument("--kv-format", choices=("dense", *kv_format.IDS), default="dense",
                        help="FP8 layout, or dense: K in the dtype of q (%(default)s)")  # fmt: skip
    parser.add_argument("--kv-strides", choices=("packed", "page_strided", "token_strided"),
                        default="packed", help="how the cache lies in memory")  # fmt: skip
    for name, text in (
        ("causal", "bottom-right aligned causal mask"),
        ("attn-sink", "with an attention sink (sparse)"),
        ("topk-length", "with topk_length (sparse)"),
        ("batch-invariant", "rows must not depend on the rest of the batch"),
        ("as-installed", "count what this machine lacks as a reason, for a simulated device too"),
        ("all", "every backend with all its reasons, other devices' too"),
        ("json", "for programs"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--backend", help="explicit choice, as backend= in a call")


def run(args: argparse.Namespace) -> int:
    decision = api.explain(
        choice_key(_key(args), args.batch, args.topk + args.extra_topk or args.s_k),
        device=args.device,
        backend=args.backend,
        as_installed=True if args.as_installed else None,
    )
    if args.json:
        print(json.dumps(decision.to_json(), indent=2))
    else:
        show(decision, Console(), everything=args.all)
    return 0 if decision.selected is not None else 1


def show(decision: Decision, console: Console, everything: bool = False) -> None:
    """The answer and its reason first; near misses only as far as the terminal has room, so that
    the answer does not scroll away."""
    if everything:
        return console.print(decision.text(everything=True), markup=False, highlight=False)
    told = narrate.lines(decision)
    room = console.height - 4 if console.is_terminal else 10**6
    width = console.width - _LABEL
    used, kept, left = 0, [], 0
    last = [line for line in told if line[0] == "others"]
    used = sum(_rows(words, width) for _, words in last)
    for label, words in told[: len(told) - len(last)]:
        used += _rows(words, width)
        if used <= room or label not in ("also", "almost", "note"):
            kept.append((label, words))
        else:
            left += 1
    style = "bold green" if decision.selected else "bold red"
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=_LABEL - 1, no_wrap=True)
    grid.add_column()
    for label, words in [*kept, *last]:
        body = Text(words)
        if label == "selected":
            body.stylize(style, 0, words.index(":"))
        grid.add_row(Text(label, "bold"), body)
    more = f"{left} lines and " if left else ""
    grid.add_row(
        Text("more", "dim"), Text(f"{more}every reason: flashmla-hub explain --all", "dim")
    )
    return console.print(grid)


_LABEL = 9  # columns of the labels


def _rows(words: str, width: int) -> int:
    return len(textwrap.wrap(words, max(width, 20))) or 1


def _key(args: argparse.Namespace) -> KernelKey:
    layout = None
    if args.kv_format != "dense":
        layout = kv_format.get(kv_format.caches(args.kv_format)[0], args.d_qk)
    if layout is not None and args.d_qk not in (None, layout.d_qk):
        raise InvalidRequestError("--d-qk", args.d_qk, f"{layout.d_qk}, as {layout.name} has it")
    d_qk = args.d_qk or (layout.d_qk if layout is not None else 576)
    d_v = args.d_v or dict(validation.HEAD_DIMS).get(d_qk, 512)
    if (d_qk, d_v) not in validation.HEAD_DIMS:
        known = " | ".join(f"{a}/{b}" for a, b in validation.HEAD_DIMS)
        raise InvalidRequestError("--d-qk/--d-v", f"{d_qk}/{d_v}", known)
    if args.h_q % args.h_kv:
        raise InvalidRequestError("--h-q % --h-kv", f"{args.h_q} % {args.h_kv}", "0")
    op = args.op or (request.SPARSE_DECODE if args.topk else request.DENSE_DECODE)
    sparse = op != request.DENSE_DECODE
    if sparse and args.causal:
        raise InvalidRequestError("--causal", True, "no mask with indices")
    if sparse != bool(args.topk):
        raise InvalidRequestError("--topk", args.topk, "> 0 for a sparse op, 0 for a dense one")
    if not sparse:
        for name in ("attn_sink", "topk_length", "extra_topk"):
            if getattr(args, name):
                option = f"--{name.replace('_', '-')}"
                raise InvalidRequestError(option, "given without --topk", "--topk N beside it")
    prefill = op == request.SPARSE_PREFILL
    return KernelKey(
        op=op,
        s_q=1 if prefill else args.s_q,
        h_q=args.h_q,
        h_kv=args.h_kv,
        d_qk=d_qk,
        d_v=d_v,
        page_block_size=1 if prefill else args.page_size,
        dtype=args.dtype,
        kv_format=args.kv_format,
        causal=args.causal and args.s_q > 1,
        topk=args.topk,
        topk_length=args.topk_length,
        attn_sink=args.attn_sink,
        extra_topk=args.extra_topk,
        extra_page_block_size=args.extra_page_size if args.extra_topk else 0,
        batch_invariant=args.batch_invariant,
        kv_strides=args.kv_strides,
    )


def _count(low: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not low <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= {low}")
    return value


_MOST = 2**31 - 1  # no tensor of a call has more in one dimension

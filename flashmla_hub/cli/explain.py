"""``flashmla-hub explain``: the decision for any shape on any device, simulated ones included."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashmla_hub import api, kv_format, request, validation
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

exit codes: 0 a backend is selected, 1 none is, 2 wrong use
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="VENDOR[:ARCH]",
        help="device to simulate, or a torch device of this machine (default: this machine's)",
    )
    parser.add_argument("--op", choices=request.OPS, help="default: by --topk")
    for name, value, text in (
        ("batch", 1, "requests in the batch"),
        ("s-q", 1, "query tokens per request"),
        ("h-q", 128, "query heads"),
        ("h-kv", 1, "KV heads"),
        ("d-qk", None, "head dim of q and K (default: 576, or what --kv-format has)"),
        ("d-v", None, "head dim of V (default: what goes with --d-qk)"),
        ("s-k", 4096, "tokens per request that the block table has room for"),
        ("page-size", 64, "tokens per page"),
        ("topk", 0, "width of indices; 0: dense"),
        ("extra-topk", 0, "width of the second cache's indices"),
        ("extra-page-size", 64, "tokens per page of the second cache"),
    ):
        parser.add_argument(f"--{name}", type=_count, default=value, metavar="N", help=text)
    parser.add_argument("--dtype", choices=tuple(DTYPE_NAMES.values()), default="bfloat16")
    parser.add_argument("--kv-format", default="dense", help="dense, v32 or model1 (FP8 layouts)")
    parser.add_argument("--kv-strides", choices=("packed", "page_strided", "token_strided"),
                        default="packed", help="how the cache lies in memory")  # fmt: skip
    for name, text in (
        ("causal", "bottom-right aligned causal mask"),
        ("attn-sink", "with an attention sink (sparse)"),
        ("topk-length", "with topk_length (sparse)"),
        ("batch-invariant", "rows must not depend on the rest of the batch"),
        ("as-installed", "count what this machine lacks as a reason, for a simulated device too"),
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
        show(decision, Console())
    return 0 if decision.selected is not None else 1


def show(decision: Decision, console: Console) -> None:
    """The decision as a table."""
    console.print(f"[bold]request[/]  {decision.choice}", highlight=False)
    console.print(f"[bold]device[/]   {decision.device}", highlight=False)
    for note in decision.notes:
        console.print(f"[bold]note[/]     {note}", highlight=False)
    style = "green" if decision.selected else "red"
    chosen = f"[{style}]{decision.selected or 'none'}[/]"
    console.print(f"[bold]selected[/] {chosen}: {decision.why}", highlight=False)
    table = Table("backend", "rank", "verdict", show_lines=True)
    for candidate in decision.candidates:
        lines = [f"rewrite {r}" for r in candidate.rewrites]
        lines += [f"hazard {h}" for h in candidate.hazards]
        lines += [*candidate.reasons, *candidate.notes]
        if candidate.accepted and not candidate.automatic:
            lines.append("never selected automatically; only by backend=")
        head = "accepted" if candidate.accepted else "refused"
        name = Text(
            candidate.backend, "bold green" if candidate.backend == decision.selected else ""
        )
        table.add_row(name, str(candidate.rank), Text("\n".join([head, *lines])))
    console.print(table)


def _key(args: argparse.Namespace) -> KernelKey:
    layout = None if args.kv_format == "dense" else kv_format.get(args.kv_format)
    d_qk = args.d_qk or (layout.d_qk if layout is not None else 576)
    d_v = args.d_v or dict(validation.HEAD_DIMS).get(d_qk, 512)
    if (d_qk, d_v) not in validation.HEAD_DIMS:
        known = " | ".join(f"{a}/{b}" for a, b in validation.HEAD_DIMS)
        raise InvalidRequestError("--d-qk/--d-v", f"{d_qk}/{d_v}", known)
    if args.h_kv == 0 or args.h_q % args.h_kv:
        raise InvalidRequestError("--h-q % --h-kv", f"{args.h_q} % {args.h_kv}", "0")
    op = args.op or (request.SPARSE_DECODE if args.topk else request.DENSE_DECODE)
    sparse = op != request.DENSE_DECODE
    if sparse and args.causal:
        raise InvalidRequestError("--causal", True, "no mask with indices")
    if sparse != bool(args.topk):
        raise InvalidRequestError("--topk", args.topk, "> 0 for a sparse op, 0 for a dense one")
    if not sparse and (args.attn_sink or args.topk_length or args.extra_topk):
        raise InvalidRequestError(
            "--attn-sink, --topk-length, --extra-topk", "given", "with --topk"
        )
    for name in ("s_q", "h_q", "page_size"):
        if getattr(args, name) < 1:
            raise InvalidRequestError(f"--{name.replace('_', '-')}", getattr(args, name), ">= 1")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number >= 0")
    return value

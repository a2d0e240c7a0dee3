"""``flashmla-hub demo``: a model decoded twice, by transformers and through the hub."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flashmla_hub import api
from flashmla_hub.checks import DTYPE_NAMES
from flashmla_hub.cli import checked, demo_ranks, explain
from flashmla_hub.cli.ending import Interrupted
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.request import KernelKey

if TYPE_CHECKING:
    from flashmla_hub.examples.deepseek_model import Comparison

MODELS = {  # also flashmla_hub.examples.models.KINDS, which needs transformers to be imported
    "v3": "DeepSeek-V3: every token attended to (examples/deepseek_decode.py)",
    "v32": "DeepSeek-V3.2: an indexer picks the tokens (examples/deepseek_v32.py)",
    "v4": "DeepSeek-V4: a sliding window, compressed entries in a second cache, sinks"
    " (examples/deepseek_v4.py)",
    "glm": "GLM 5: V3.2's attention, one indexer for two layers (examples/glm_dsa.py)",
    "glm_no_rope": "GLM 5.3: the same without rotary embeddings (examples/glm_dsa.py)",
}
HELP = "decode a DeepSeek or GLM model through the hub and compare with transformers"
EPILOG = (
    """\
Builds a model with Hugging Face transformers (seeded random weights, the real head dims, few
layers, a small vocabulary) and generates greedily, once with transformers' own attention and once
with every layer's attention going through the hub: absorbed projections, paged latent cache with
shuffled pages, prompts of different lengths. The layers are in flashmla_hub/examples/, there to be
lifted.

models:
"""
    + "".join(f"  {name:<12} {text}\n" for name, text in MODELS.items())
    + """
examples:
  flashmla-hub demo
  flashmla-hub demo --model v32 --kv-format v32      a quantised cache; transformers then
                                                     reads the rows that it gives back
  flashmla-hub demo --device cuda --dtype bfloat16 --tokens 128
  flashmla-hub demo --ranks 2        the cache dealt out over two processes

exit codes: 0 both agree, 1 they do not, 2 wrong use. In float32 they agree when all tokens are
equal; in other dtypes when the logits stay close up to the first token that differs.
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=tuple(MODELS), default="v3", help="(%(default)s)")
    parser.add_argument(
        "--kv-format",
        default="dense",
        metavar="ID",
        help="layout of the hub's cache: dense, v32 (models v32, glm), model1 (v4) (%(default)s)",
    )
    parser.add_argument(
        "--device", default=checked.here(), help="torch device (this machine's: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPE_NAMES.values()),
        help="default: float32 on the CPU, else bfloat16",
    )
    parser.add_argument(
        "--backend", help="use this backend, never another (default: the hub's choice)"
    )
    for name, value, text in (
        ("batch", 3, "prompts in the batch, each of another length"),
        ("tokens", 32, "tokens to generate for each"),
        ("heads", 16, "query heads of the model"),
        ("layers", 3, "layers of the model"),
        ("seed", 0, "seed of weights and prompts"),
        ("ranks", 1, "processes that share the cache (decode context parallelism)"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{text} (%(default)s)"
        )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    for name in ("batch", "tokens", "heads", "layers"):
        if getattr(args, name) < 1:
            raise InvalidRequestError(f"--{name}", getattr(args, name), ">= 1")
    if args.ranks != 1:
        demo_ranks.check(args)
    checked.device(args.device)
    try:
        from flashmla_hub.examples import deepseek_model, models
    except ModuleNotFoundError as error:
        wanted = "transformers, by pip install 'transformers>=5.17'"
        raise InvalidRequestError("installed packages", str(error), wanted) from error

    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    _check_backend(args, dtype)
    console = Console(stderr=True)
    models.get(args.model, args.kv_format)
    console.print(f"Building {args.model}: {args.layers} layers, {args.heads} heads, {dtype} ...")
    setup = deepseek_model.build(
        device=args.device,
        dtype=dtype,
        batch=args.batch,
        tokens=args.tokens,
        heads=args.heads,
        layers=args.layers,
        seed=args.seed,
        model=args.model,
        layout=args.kv_format,
    )
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("transformers' own attention", total=args.tokens)
        hub_task = progress.add_task("attention through flashmla_hub", total=args.tokens)
        held: list[int] = []
        try:
            stock = deepseek_model.generate_stock(setup, lambda: progress.advance(task))
            if args.ranks > 1:
                hub, held = demo_ranks.generate(args, setup, dtype)
                progress.update(hub_task, completed=args.tokens)
            else:
                tick = partial(progress.advance, hub_task)
                hub = deepseek_model.generate_hub(setup, tick, args.backend)
        except KeyboardInterrupt:
            done = [int(each.completed) for each in progress.tasks]
            raise Interrupted(
                f"of {args.tokens} tokens {done[0]} generated by transformers and {done[1]} "
                "through the hub, none compared"
            ) from None
    comparison = deepseek_model.compare(setup, stock, hub)
    if args.json:
        print(json.dumps({**comparison.to_json(), "tokens_on_rank": held}, indent=2))
    else:
        show(comparison, Console())
        if held:
            demo_ranks.show(held, Console())
    return 0 if comparison.agree else 1


def show(comparison: Comparison, console: Console) -> None:
    stock, hub = comparison.stock, comparison.hub
    table = Table("prompt", "run", "greedy tokens")
    for length, expected, got in zip(
        comparison.prompt_lengths, stock.tokens.tolist(), hub.tokens.tolist(), strict=True
    ):
        table.add_row(f"{length} tokens", "transformers", " ".join(map(str, expected)))
        marked = (str(b) if a == b else f"[red]{b}[/]" for a, b in zip(expected, got, strict=True))
        table.add_row("", "flashmla_hub", " ".join(marked), end_section=True)
    console.print(table)
    verdict = "[green]equal[/]" if comparison.same_tokens else "[yellow]different[/]"
    if not comparison.agree:
        verdict = "[bold red]the two runs do not agree[/]"
    console.print(f"tokens                    {verdict}")
    console.print(
        f"largest logit difference  {comparison.logit_difference:.3g}"
        f"  (standard deviation of the logits {comparison.logit_spread:.3g}, {comparison.dtype})",
        highlight=False,
    )
    console.print(f"transformers              {stock.tokens_per_second:.1f} tokens/s")
    console.print(f"flashmla_hub              {hub.tokens_per_second:.1f} tokens/s")
    console.print(
        "[dim]Rates of a small model in plain Python; transformers expands its cache at each step."
        " Kernels are timed by flashmla-hub bench.[/]",
        highlight=False,
    )
    if hub.decision is not None:
        console.print("\n[bold]who serves the decode steps[/]")
        explain.show(hub.decision, console)


def _check_backend(args: argparse.Namespace, dtype: str) -> None:
    """Refuse a backend that does not take the decode steps, before the model is built. Those of a
    sparse model are not known that early: there the name alone is looked at."""
    checked.backend(args.backend)
    if args.backend is None or (args.model, args.kv_format) != ("v3", "dense"):
        return
    key = KernelKey(h_q=args.heads, dtype=dtype)
    decision = api.explain(key, device=torch.device(args.device), backend=args.backend)
    if decision.selected is None:
        own = next((c for c in decision.candidates if c.backend == args.backend), None)
        reasons = "; ".join(own.reasons) if own is not None else "it could not be asked"
        wanted = "a backend that serves this model here; see flashmla-hub explain"
        raise InvalidRequestError("--backend", f"{args.backend!r} ({reasons})", wanted)

"""``flashmla-hub demo --ranks N``: the cache of the demo's model dealt out over N processes.

Each rank holds 1/N of every request's tokens and decodes them through the hub; the merged
attention must give transformers' own tokens. The ranks are processes of this machine that talk
through gloo; this module, run as a script, is one of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from flashmla_hub import config
from flashmla_hub.errors import FlashMLAHubError, InvalidRequestError

if TYPE_CHECKING:
    from flashmla_hub.examples.deepseek_model import Run, Setup

BUILD = ("batch", "tokens", "heads", "layers", "seed")  # what the ranks must agree on


def check(args: argparse.Namespace) -> None:
    """Refuse what the ranks cannot do, before any is started."""
    if args.ranks < 1:
        raise InvalidRequestError("--ranks", args.ranks, ">= 1")
    if args.heads % args.ranks:
        raise InvalidRequestError("--heads", args.heads, f"a multiple of --ranks {args.ranks}")
    if args.device != "cpu":
        raise InvalidRequestError("--device", repr(args.device), "cpu where --ranks is above 1")
    if args.model != "v3" or args.kv_format != "dense":
        # Lists name slots of one pool: dealing them out over ranks is not part of the hub.
        what = f"{args.model} with kv_format {args.kv_format}"
        raise InvalidRequestError("--model", what, "v3, dense, where --ranks is above 1")


def generate(args: argparse.Namespace, setup: Setup, dtype: str) -> tuple[Run, list[int]]:
    """The run of ``args.ranks`` processes, and how many tokens each of them held at the end.

    Raises:
        FlashMLAHubError: a rank failed, or two ranks disagree; the message holds the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start(rank, args, dtype, folder) for rank in range(args.ranks)]
        try:
            output = [process.communicate()[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        for rank, process in enumerate(ranks):
            if process.returncode:
                raise FlashMLAHubError(f"rank {rank} failed:\n{output[rank][-4000:]}")
        results = [torch.load(_result(folder, rank)) for rank in range(args.ranks)]
    return _join(results, setup, args.backend)


def show(held: list[int], console: Console) -> None:
    table = Table("rank", "tokens in its cache", title="one cache over all ranks", box=None)
    for rank, tokens in enumerate(held):
        table.add_row(str(rank), str(tokens))
    console.print(table)


def _join(
    results: list[dict[str, Any]], setup: Setup, backend: str | None
) -> tuple[Run, list[int]]:
    from flashmla_hub import explain_call
    from flashmla_hub.examples.deepseek_model import Run

    first = results[0]
    for rank, result in enumerate(results):
        if not torch.equal(result["tokens"], first["tokens"]):
            raise FlashMLAHubError(f"rank {rank} generated other tokens than rank 0")
    run = Run(first["tokens"], first["logits"], first["tokens_per_second"])
    batch, heads = len(setup.prompts), setup.model.config.num_attention_heads
    q = torch.zeros(batch, 1, heads, 576, dtype=setup.model.dtype)
    run.decision = explain_call(
        q, q.new_zeros(1, 64, 1, 576), q.new_zeros(batch, 1, dtype=torch.int32),
        q.new_zeros(batch, dtype=torch.int32), 512, backend=backend,
    )  # fmt: skip
    return run, [result["held"] for result in results]


def _start(rank: int, args: argparse.Namespace, dtype: str, folder: str) -> subprocess.Popen[str]:
    words = [f"--{name}={getattr(args, name)}" for name in (*BUILD, "ranks")]
    if args.backend:
        words.append(f"--backend={args.backend}")
    threads = max(1, (os.cpu_count() or 1) // args.ranks)
    import_from = str(Path(__file__).resolve().parents[2])  # a checkout, or site-packages
    return subprocess.Popen(
        [sys.executable, "-m", "flashmla_hub.cli.demo_ranks", *words,
         f"--dtype={dtype}", f"--rank={rank}", f"--folder={folder}"],
        env=config.child_environment(PYTHONPATH=import_from, OMP_NUM_THREADS=str(threads)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def _result(folder: str, rank: int) -> Path:
    return Path(folder, f"rank{rank}.pt")


def main() -> None:
    """One rank."""
    import torch.distributed as dist

    from flashmla_hub.examples import deepseek_model
    from flashmla_hub.examples.sharded_decode import ShardedLatentCache, ShardedMLA

    parser = argparse.ArgumentParser(description="one rank of flashmla-hub demo --ranks")
    for name in (*BUILD, "ranks", "rank"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("dtype", "folder", "backend"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    dist.init_process_group(
        "gloo", init_method=f"file://{args.folder}/store", rank=args.rank, world_size=args.ranks
    )
    setup = deepseek_model.build(
        device="cpu", dtype=args.dtype, **{name: getattr(args, name) for name in BUILD}
    )
    caches: list[ShardedLatentCache] = []

    def make_cache(*shape: int, **options: Any) -> ShardedLatentCache:
        caches.append(ShardedLatentCache(*shape, **options))
        return caches[-1]

    run = deepseek_model.generate_hub(
        setup, backend=args.backend, make_cache=make_cache, attention=ShardedMLA
    )
    # Slots that were never written still hold the NaN they were made with.
    held = int((~caches[-1].pools[0][..., 0].isnan()).sum())
    torch.save(
        {
            "tokens": run.tokens,
            "logits": run.logits,
            "tokens_per_second": run.tokens_per_second,
            "held": held,
        },
        _result(args.folder, args.rank),
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

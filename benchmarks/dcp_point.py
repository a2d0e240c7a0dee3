"""Measured points for dcp_model.py: kernel and merges on the cards of one host.

    torchrun --nproc-per-node 2 benchmarks/dcp_point.py --out point.json
    python benchmarks/dcp_model.py --out FOLDER --measured point.json

Every rank decodes its shard through the hub; the merged result is checked against the whole cache
on one card before anything is timed. Times are of CUDA graphs (as engines run decode steps), the
slowest rank's, median of ``--repeats``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flashmla_hub as hub
from flashmla_hub import parallel

D_QK, D_V, PAGE, CALLS = 576, 512, 64, 20
POINTS = ((1, 131072), (16, 8192), (16, 32768), (64, 8192))  # (batch, tokens a request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    dist.init_process_group("nccl")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank)
    points = [measure(batch, tokens, args.heads, args.repeats) for batch, tokens in POINTS]
    if rank == 0:
        device = torch.cuda.get_device_name()
        report = {"device": device, "world_size": world_size, "points": points}
        args.out.write_text(json.dumps(report, indent=2))
        print(json.dumps(report))
    dist.destroy_process_group()


def measure(batch: int, tokens: int, heads: int, repeats: int) -> dict[str, Any]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    g = torch.Generator("cuda").manual_seed(1)
    q = torch.randn(batch, 1, heads, D_QK, device="cuda", generator=g).bfloat16()
    width = -(-tokens // (PAGE * world_size))
    table = torch.arange(batch * width, device="cuda", dtype=torch.int32).view(batch, width)
    shape = (batch * width, PAGE, 1, D_QK)
    # Interleave = page: page j of the whole cache is page j // W of rank j % W.
    whole = [torch.randn(shape, device="cuda", generator=g).bfloat16() for _ in range(world_size)]
    cache = whole[rank]
    lens = torch.full((batch,), tokens, device="cuda", dtype=torch.int32)
    local = parallel.local_seq_lens(lens, world_size, rank, PAGE)
    share = heads // world_size
    mine = q[:, :, rank * share : (rank + 1) * share].contiguous()

    pages = torch.stack([w.view(batch, width, PAGE, 1, D_QK) for w in whole], 2)
    one_cache = pages.view(batch * width * world_size, PAGE, 1, D_QK)
    one_table = torch.arange(len(one_cache), device="cuda", dtype=torch.int32).view(batch, -1)
    expected, expected_lse = hub.flash_mla_with_kvcache(q, one_cache, one_table, lens, D_V)
    heads_here = slice(rank * share, (rank + 1) * share)
    for mode in parallel.MODES:
        out, lse = parallel.decode_over_group(
            mine, cache, table, lens, D_V, mode=mode, interleave=PAGE
        )
        torch.testing.assert_close(out, expected[:, :, heads_here], atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(lse, expected_lse[:, heads_here], atol=1e-3, rtol=1e-3)
    del pages, one_cache, whole

    state = hub.flash_mla_with_kvcache(q, cache, table, local, D_V)
    step: dict[str, Callable[[], Any]] = {
        "kernel_us": lambda: hub.flash_mla_with_kvcache(q, cache, table, local, D_V)
    }
    for mode in parallel.MODES:

        def merge(mode: str = mode) -> None:
            parallel.gather_heads(mine)
            parallel.merge_over_group(*state, None, mode)

        step[f"{mode}_us"] = merge
    times = {name: graph_us(call, repeats) for name, call in step.items()}
    return {"batch": batch, "s_q": 1, "h_q": heads, "s_k": tokens, **times}


def graph_us(call: Callable[[], Any], repeats: int) -> float:
    """Microseconds of one of CALLS calls in a graph, on the slowest rank."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the watchdog thread of NCCL queries events while we capture
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / CALLS)
    slowest = torch.tensor(statistics.median(times), device="cuda")
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


if __name__ == "__main__":
    main()

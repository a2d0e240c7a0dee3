"""One rank of the context-parallel tests: runs every case of a world size, writes what broke.

python dcp_worker.py RANK WORLD_SIZE FOLDER sample|full
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dcp_cases as cases
import torch
import torch.distributed as dist
from torch import Tensor

import flashmla_hub as hub
from flashmla_hub import parallel


def shard(data: cases.Data, world_size: int, rank: int, interleave: int) -> tuple[Tensor, Tensor]:
    """This rank's cache, NaN wherever no token lies, and the block table all ranks share."""
    width, batch = cases.pages_needed(world_size), len(data.keys)
    g = torch.Generator().manual_seed(data.seed + 1)
    table = torch.randperm(batch * width, generator=g).view(batch, width).int()
    cache = torch.full((batch * width, cases.PAGE, 1, cases.D_QK), torch.nan, dtype=data.q.dtype)
    for row, keys in enumerate(data.keys):
        positions = torch.arange(len(keys))
        slots = parallel.local_slots(
            positions, table[row], world_size, rank, cases.PAGE, interleave
        )
        cache.view(-1, cases.D_QK)[slots[slots >= 0]] = keys[slots >= 0]
    return cache, table


def merge(out: Tensor, lse: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    if mode == "ag_rs_own_wire":
        return parallel.merge_over_group(out, lse, mode="ag_rs", wire_dtype=out.dtype)
    return parallel.merge_over_group(out, lse, mode=mode)


def naive_merge(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook merge, which does not know that +inf marks an empty shard."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    gathered = [torch.empty_like(lse) for _ in range(world_size)]
    dist.all_gather(gathered, lse)
    merged = torch.logsumexp(torch.stack(gathered), 0)
    part = out * (lse - merged).exp().transpose(1, 2).unsqueeze(-1)
    dist.all_reduce(part)
    share = part.shape[2] // world_size
    heads = slice(rank * share, (rank + 1) * share)
    return part[:, :, heads], merged[:, heads]


class Rank:
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        share = cases.HEADS // world_size
        self.heads = slice(rank * share, (rank + 1) * share)
        self.empty_shards = 0

    def run(self, setting: cases.Setting) -> dict[str, list[str]]:
        data = cases.make(setting)
        cache, table = shard(data, self.world_size, self.rank, setting.interleave)
        lens = parallel.local_seq_lens(data.lens, self.world_size, self.rank, setting.interleave)
        self.empty_shards += int(((lens == 0) & (data.lens > 0)).sum())
        broken = {}
        for mode in cases.MODES:
            out, lse = self.decode(data, cache, table, setting, mode)
            broken[f"{setting}-{mode}"] = [
                f"{text} (seed {data.seed})"
                for text in cases.violations(out, lse, data, self.heads, setting.dtype)
            ]
        return broken

    def decode(
        self, data: cases.Data, cache: Tensor, table: Tensor, setting: cases.Setting, mode: str
    ) -> tuple[Tensor, Tensor]:
        q = data.q[:, :, self.heads]  # as tensor parallelism leaves the heads
        if mode != "ag_rs_own_wire":
            return parallel.decode_over_group(
                q, cache, table, data.lens, cases.D_V, mode=mode, interleave=setting.interleave
            )
        batch, s_q = q.shape[:2]
        rows = parallel.gather_heads(q).reshape(batch * s_q, 1, cases.HEADS, cases.D_QK)
        flat, lens = parallel.shard_rows(
            table, data.lens, s_q, self.world_size, self.rank, setting.interleave
        )
        out, lse = hub.flash_mla_with_kvcache(rows, cache, flat, lens, cases.D_V)
        out, lse = merge(out, lse, mode)
        return out.unflatten(0, (batch, s_q))[:, :, 0], lse.view(batch, s_q, -1).transpose(1, 2)

    def controls(self) -> dict[str, list[str]]:
        """Known mistakes; each must break something on some rank."""
        setting = cases.CONTROL_SETTING
        data = cases.make(setting)
        batch, s_q = data.q.shape[:2]
        cache, table = shard(data, self.world_size, self.rank, setting.interleave)
        local = parallel.local_seq_lens(data.lens, self.world_size, self.rank, setting.interleave)
        flat, lens = parallel.shard_rows(
            table, data.lens, s_q, self.world_size, self.rank, setting.interleave
        )
        rows = data.q.reshape(batch * s_q, 1, cases.HEADS, cases.D_QK)
        out, lse = hub.flash_mla_with_kvcache(rows, cache, flat, lens, cases.D_V)

        def unflatten(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            o, ls = state
            return o.unflatten(0, (batch, s_q))[:, :, 0], ls.view(batch, s_q, -1).transpose(1, 2)

        results = {
            "lse_base_2": unflatten(merge(out, lse / 0.6931471805599453, "a2a")),
            "inf_not_cleaned": unflatten(naive_merge(out, lse)),
        }
        filled, wide = torch.nan_to_num(cache), table.repeat(1, self.world_size)
        for name, used, seqlens in (
            ("global_lengths", filled, data.lens),
            ("causal_on_local_lengths", cache, local),
        ):
            state = hub.flash_mla_with_kvcache(data.q, used, wide, seqlens, cases.D_V, causal=True)
            results[name] = merge(*state, "a2a")
        return {
            name: cases.violations(o, ls, data, self.heads, setting.dtype)
            for name, (o, ls) in results.items()
        }


def main() -> None:
    rank, world_size, folder, extent = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    worker = Rank(rank, world_size)
    results: dict[str, list[str]] = {}
    for setting in cases.SETTINGS if extent == "full" else cases.SAMPLE:
        results |= worker.run(setting)
    report = {
        "cases": results,
        "controls": worker.controls(),
        "empty_shards": worker.empty_shards,
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

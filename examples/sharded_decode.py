"""``deepseek_decode`` with its cache dealt out over the ranks of a process group.

The whole difference to one device: a token's slot exists on one rank only, each rank attends with
its share of the query heads, and ``decode_over_group`` merges. Projections are not sharded here,
so every rank gathers all heads again afterwards; under tensor parallelism each would keep its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache
from flashmla_hub.parallel import decode_over_group, gather_heads, local_slots


class ShardedLatentCache(PagedLatentCache):
    """This rank's tokens. ``block_table`` and ``cache_seqlens`` (over all ranks) are the same on
    every rank; a page of the table stands for ``world_size`` pages' worth of positions."""

    def __init__(
        self, layers: int, batch: int, max_tokens: int, *, page_block_size: int = 64, **options: Any
    ) -> None:
        self.world_size, self.rank = dist.get_world_size(), dist.get_rank()
        own = -(-max_tokens // (page_block_size * self.world_size)) * page_block_size
        super().__init__(layers, batch, own, page_block_size=page_block_size, **options)

    def begin_step(self, new: Tensor) -> None:
        position = (self.cache_seqlens[:, None] + new.cumsum(1) - 1).clamp(min=0)
        page_block_size = self.pools[0].shape[1]
        slots = local_slots(position, self.block_table, self.world_size, self.rank, page_block_size)
        self.slots = torch.where(new, slots, -1).flatten()
        self.cache_seqlens += new.sum(1).int()


class ShardedMLA(AbsorbedMLA):
    """Attends over all ranks' tokens; ``mode`` is that of ``merge_over_group``."""

    mode = "a2a"
    cache: ShardedLatentCache

    def attend(self, q: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """As ``AbsorbedMLA.attend``; the lse is that of this rank's heads."""
        cache = self.cache
        share = q.shape[2] // cache.world_size
        out, lse = decode_over_group(
            q[:, :, cache.rank * share : (cache.rank + 1) * share],
            pool,
            cache.block_table,
            cache.cache_seqlens,
            self.attention.kv_lora_rank,
            mode=self.mode,
            softmax_scale=self.softmax_scale,
            backend=self.backend,
        )
        return gather_heads(out), lse

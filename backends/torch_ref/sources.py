"""Where keys come from: pages of a table, or lists of slots, read in chunks of bounded size.

A source never uses an entry that means nothing as an address and never lets one reach a result:
dead entries are masked, and read from a slot that is alive ("home"), because a weight of 0 times
a NaN in a slot that nobody uses would be a NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flashmla_hub import kv_format

CHUNK = 512  # tokens read at a time; a longer one gains nothing on CPUs and costs memory elsewhere


def values_at_hand(device: torch.device) -> bool:
    """Whether reading a tensor's values costs nothing. Elsewhere it would wait for the device."""
    return device.type == "cpu"


class Chunk(NamedTuple):
    """``k`` (rows, h_kv, tokens, d_qk) and ``visible``, which broadcasts against scores
    (rows, h_kv, s_q, heads of a group, tokens)."""

    k: Tensor
    visible: Tensor


def layouts_of(kv_format_id: str) -> tuple[str, str]:
    """The layouts of the first and the second cache."""
    return ("dense", "dense") if kv_format_id == "dense" else kv_format.caches(kv_format_id)


class Pool:
    """The tokens of a paged cache (num_blocks, page_block_size, h_kv, width), whatever its layout,
    converted to ``compute`` as they are read."""

    def __init__(
        self, cache: Tensor, layout: str, compute: torch.dtype, descale: Tensor | None = None
    ) -> None:
        self.layout = None if layout == "dense" else kv_format.get(layout, cache.shape[-1])
        self.descale = descale
        self.views = (cache,) if self.layout is None else self.layout.views(cache)
        self.page_block_size = cache.shape[1]
        self.tokens = cache.shape[0] * cache.shape[1]
        self.compute = compute
        self.heads = torch.arange(cache.shape[2], device=cache.device).unsqueeze(-1)

    def read(self, page: Tensor, offset: Tensor) -> Tensor:
        """K (rows, h_kv, tokens, d_qk) of pages and offsets (rows, 1 or h_kv, tokens)."""
        parts = tuple(view[page, offset, self.heads] for view in self.views)
        k = parts[0] if self.layout is None else self.layout.decode(parts, self.descale)
        return k.to(self.compute)


class PagedSource:
    """The first ``cache_seqlens`` tokens of each row of a block table, causal or not."""

    def __init__(
        self, pool: Pool, block_table: Tensor, cache_seqlens: Tensor, s_q: int, causal: bool
    ) -> None:
        self.pool, self.block_table = pool, block_table
        self.capacity = block_table.shape[1] * pool.page_block_size if pool.tokens else 0
        self.lens = cache_seqlens.long().clamp(0, self.capacity)
        limit = self.lens.unsqueeze(-1).expand(-1, s_q)
        if causal:
            limit = limit + torch.arange(1 - s_q, 1, device=limit.device)
        self.limit = limit[:, None, :, None, None]
        self.host_lens = self.lens.tolist() if values_at_hand(self.lens.device) else None
        self.home = _home(block_table[:, :1], self.lens.unsqueeze(-1) > 0)

    def chunks(self, rows: slice) -> Iterator[Chunk]:
        stop = self.capacity if self.host_lens is None else max(self.host_lens[rows])
        lens, limit, home = self.lens[rows, None], self.limit[rows], self.home[rows]
        table, size = self.block_table[rows], self.pool.page_block_size
        for start in range(0, stop, CHUNK):
            position = torch.arange(start, min(start + CHUNK, stop), device=lens.device)
            alive = position < lens
            page = torch.where(alive, table[:, position // size].long(), home)
            offset = torch.where(alive, position % size, 0)
            k = self.pool.read(page.unsqueeze(1), offset.unsqueeze(1))
            yield Chunk(k, position < limit)


class SlotSource:
    """Slots (rows, 1 or h_kv, topk) of each row; negative ones, those past the cache and those
    past ``topk_length`` (rows,) are ignored."""

    def __init__(self, pool: Pool, slots: Tensor, topk_length: Tensor | None) -> None:
        self.pool, self.slots = pool, slots
        self.valid = (slots >= 0) & (slots < pool.tokens)
        if topk_length is not None:
            entry = torch.arange(slots.shape[-1], device=slots.device)
            self.valid &= entry < topk_length[:, None, None]
        self.home = _home(slots, self.valid)

    def chunks(self, rows: slice) -> Iterator[Chunk]:
        slots, valid = self.slots[rows], self.valid[rows]
        stop = slots.shape[-1] if self.pool.tokens else 0
        if values_at_hand(valid.device) and not valid.any():
            stop = 0
        size = self.pool.page_block_size
        for start in range(0, stop, CHUNK):
            alive = valid[..., start : start + CHUNK]
            slot = torch.where(alive, slots[..., start : start + CHUNK].long(), self.home[rows])
            k = self.pool.read(slot // size, slot % size)
            yield Chunk(k, alive[:, :, None, None, :])


def _home(entries: Tensor, alive: Tensor) -> Tensor:
    """For each list (..., n) of entries (..., 1): its first alive one, else that of another list,
    else 0. Without a host read, an address that is safe to read for every list."""
    if entries.shape[-1] == 0:
        return entries.new_zeros((*entries.shape[:-1], 1), dtype=torch.int64)
    first = entries.gather(-1, alive.int().argmax(-1, keepdim=True)).long()
    has_one = alive.any(-1, keepdim=True)
    donor = first.flatten().gather(0, has_one.flatten().int().argmax(0, keepdim=True))
    return torch.where(has_one, first, torch.where(has_one.any(), donor, 0))

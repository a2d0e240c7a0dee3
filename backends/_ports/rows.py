"""Rows made safe for kernels that trust their inputs, and results handed over."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_rows(block_table: Tensor, cache_seqlens: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """(block_table, lengths) in which every entry is an address and every row has a key.

    Kernels of the FlashMLA family start at the last page of a row: for a row of length 0 they read
    the table at -1. Lengths are clamped to [1, capacity] and entries past a row's pages become
    page 0; what such a kernel returns for an empty row is replaced by ``repair_empty_rows``.

    Args:
        block_table: (batch, width) int32, width >= 1.
        cache_seqlens: (batch,) int32.
        page: tokens per page.
    """
    width = block_table.shape[1]
    lens = cache_seqlens.clamp(0, width * page)
    used = (lens + (page - 1)).div(page, rounding_mode="floor")
    columns = torch.arange(width, dtype=torch.int32, device=block_table.device)
    table = block_table.masked_fill(columns >= used.unsqueeze(1), 0)
    return table, lens.clamp_(min=1)


def valid_entries(indices: Tensor, slots: int, length: Tensor | None) -> Tensor:
    """(batch, s_q, topk) bool: entries that count (contract C4.1)."""
    valid = (indices >= 0) & (indices < slots)
    if length is not None:
        entry = torch.arange(indices.shape[-1], dtype=torch.int32, device=indices.device)
        valid &= entry < length.view(-1, 1, 1)
    return valid


def deliver(result: Tensor, target: Tensor | None) -> Tensor:
    """``result`` in ``target`` where the caller gave one, else itself, contiguous."""
    if target is None:
        return result.contiguous()
    if target is not result:
        target.copy_(result)
    return target


def buffer(target: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Contiguous memory for a port to write into: ``target`` itself where it will do."""
    if target is not None and target.is_contiguous():
        return target
    return like.new_empty(shape)

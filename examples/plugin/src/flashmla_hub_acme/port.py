"""Stands for the vendor's library: a paged MLA decode kernel, narrow as real ones are."""

from __future__ import annotations

import torch
from torch import Tensor

PAGE = 16


def paged_mla(
    query: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One query a row over pages of 16 tokens.

    Args:
        query: (rows, heads, 576) bfloat16, contiguous; heads a multiple of 8.
        cache: (pages, 16, 576) bfloat16, contiguous.
        tables: (rows, width) int32.
        lengths: (rows,) int32.
        scale: of the logits.

    Returns:
        (rows, heads, 512) bfloat16, and the lse (rows, heads) float32 in base 2. Rows of length 0
        are undefined.
    """
    if query.shape[1] % 8 or cache.shape[1] != PAGE:
        raise ValueError("heads must be a multiple of 8, pages of 16 tokens")
    capacity = tables.shape[1] * PAGE
    token = torch.arange(capacity, device=query.device)
    seen = token < lengths.unsqueeze(1)
    page = tables.repeat_interleave(PAGE, 1).masked_fill(~seen, 0).long()
    keys = cache[page, token % PAGE].float().masked_fill(~seen.unsqueeze(-1), 0)
    logits = torch.einsum("rhd,rtd->rht", query.float(), keys) * scale
    logits = logits.masked_fill(~seen.unsqueeze(1), float("-inf"))
    lse = logits.logsumexp(-1)
    weights = (logits - lse.unsqueeze(-1)).exp()
    out = torch.einsum("rht,rtd->rhd", weights, keys[..., :512])
    return out.to(query.dtype), lse * torch.log2(torch.tensor(torch.e))

"""Reading the 584-byte FP8 cache (``model1``) by bytes, as FlagGems' kernel does."""

from __future__ import annotations

import torch


def model1_tokens(cache, entries):
    """(n, 512) float64 of the slots ``entries`` of a uint8 cache (blocks, page, 1, 584)."""
    page = cache.shape[1]
    flat = cache.reshape(cache.shape[0], -1)
    rows = []
    for entry in entries.tolist():
        block, offset = divmod(entry, page)
        if not 0 <= block < cache.shape[0]:
            raise RuntimeError(f"illegal memory access: slot {entry}")
        data = flat[block, offset * 576 : offset * 576 + 576]
        at = page * 576 + offset * 8
        scales = torch.exp2(flat[block, at : at + 7].double() - 127).repeat_interleave(64)
        nope = data[:448].view(torch.float8_e4m3fn).double() * scales
        rows.append(torch.cat([nope, data[448:].contiguous().view(torch.bfloat16).double()]))
    return torch.stack(rows) if rows else torch.empty(0, 512, dtype=torch.float64)

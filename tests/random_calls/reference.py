"""The contract's results for a whole call at once, in float64 on any device.

Shares no code with the package, and reads FP8 records byte by byte, as tests/oracle.py does, whose
tolerances it uses; but in tensors instead of loops, for thousands of calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from oracle import E4M3, UE8M0, Expected
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


class Record(NamedTuple):
    """Bytes of a token, and values."""

    width: int
    d_qk: int


RECORDS = {
    "v32": Record(656, 576),
    "model1": Record(584, 512),
    "v32_no_rope": Record(528, 512),
    "v41": Record(528, 512),
    "v41_fp4": Record(288, 512),
    "fp8": Record(576, 576),
}


@functools.cache
def _table(name: str, device: torch.device) -> Tensor:
    tables = {"e4m3": E4M3, "ue8m0": UE8M0, "e2m1": E2M1 + [-x for x in E2M1]}
    return torch.tensor(tables[name], dtype=torch.float64, device=device)


def _numbers(raw: Tensor, name: str) -> Tensor:
    return _table(name, raw.device)[raw.long()]


def _as(raw: Tensor, dtype: torch.dtype) -> Tensor:
    return raw.contiguous().view(dtype).double()


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    grouped = values.unflatten(-1, (scales.shape[-1], -1)) * scales.unsqueeze(-1)
    return grouped.flatten(-2).to(torch.bfloat16).double()


def tokens(cache: Tensor, layout: str, descale: float = 1.0) -> Tensor:
    """(slots, h_kv, d_qk) in float64 of a cache (pages, page size, h_kv, width)."""
    if layout == "dense":
        return cache.double().flatten(0, 1)
    pages, size = cache.shape[:2]
    raw = cache.contiguous().view(torch.uint8).view(pages, size, -1)
    if layout == "model1":
        page = raw.view(pages, -1)
        token, scales = page[:, : 576 * size].view(pages, size, 576), page[:, 576 * size :]
        scales = scales.view(pages, size, 8)[..., :7]
        nope = _scaled(_numbers(token[..., :448], "e4m3"), _numbers(scales, "ue8m0"))
        rows = torch.cat([nope, _as(token[..., 448:], torch.bfloat16)], -1)
    elif layout == "v41":
        rows = _scaled(_numbers(raw[..., :512], "e4m3"), _numbers(raw[..., 512:], "ue8m0"))
    elif layout == "v41_fp4":
        low, high = raw[..., :256] & 15, raw[..., :256] >> 4
        codes = torch.stack([low, high], -1).flatten(-2)
        rows = _scaled(_numbers(codes, "e2m1"), _numbers(raw[..., 256:], "e4m3"))
    elif layout == "fp8":
        scale = torch.tensor([descale], dtype=torch.float64, device=raw.device)
        rows = _scaled(_numbers(raw, "e4m3"), scale.expand(*raw.shape[:-1], 1))
    else:
        rows = _scaled(_numbers(raw[..., :512], "e4m3"), _as(raw[..., 512:528], torch.float32))
        if layout == "v32":
            rows = torch.cat([rows, _as(raw[..., 528:], torch.bfloat16)], -1)
    return rows.reshape(pages * size, 1, -1)


class Source(NamedTuple):
    """Tokens, and for each query the slots it sees: slots and seen (batch, s_q, h_kv or 1, n)."""

    tokens: Tensor
    slots: Tensor
    seen: Tensor


def paged(rows: Tensor, page: int, table: Tensor, lens: Tensor, s_q: int, causal: bool) -> Source:
    n = table.shape[1] * page
    length = lens.long().clamp(0, n)
    at = torch.arange(n, device=rows.device)
    limit = length[:, None].expand(-1, s_q)
    if causal:
        limit = limit - s_q + 1 + torch.arange(s_q, device=rows.device)
    seen = at < limit[:, :, None]
    used = at < length[:, None]
    slots = table.long()[:, at // page] * page + at % page
    slots = torch.where(used, slots, 0)[:, None].expand(-1, s_q, -1)
    return Source(rows, slots.unsqueeze(2), seen.unsqueeze(2))


def listed(rows: Tensor, indices: Tensor, length: Tensor | None) -> Source:
    """indices (batch, s_q, h_kv or 1, topk); length (batch,)."""
    seen = (indices >= 0) & (indices < rows.shape[0])
    if length is not None:
        at = torch.arange(indices.shape[-1], device=rows.device)
        seen = seen & (at < length[:, None, None, None])
    return Source(rows, torch.where(seen, indices.long(), 0), seen)


def attend(
    q: Tensor, sources: Sequence[Source], d_v: int, scale: float, sink: Tensor | None = None
) -> Expected:
    """q (batch, s_q, h_q, d_qk), any dtype. As the functions of tests/oracle.py."""
    batch, s_q, h_q, d = q.shape
    h_kv = sources[0].tokens.shape[1]
    keys, masks = [], []
    for rows, slots, seen in sources:
        wide = slots.expand(-1, -1, h_kv, -1)
        heads = torch.arange(h_kv, device=q.device)[:, None]
        seen = seen.expand(-1, -1, h_kv, -1)
        keys.append(torch.where(seen.unsqueeze(-1), rows[wide, heads], 0.0))
        masks.append(seen)
    k, mask = torch.cat(keys, 3), torch.cat(masks, 3)  # (batch, s_q, h_kv, n, d), (.., n)
    grouped = q.double().view(batch, s_q, h_kv, h_q // h_kv, d)
    x = grouped @ k.transpose(-1, -2) * scale
    x = x.masked_fill(~mask.unsqueeze(3), -math.inf)
    empty = ~mask.any(-1)[..., None].expand(*x.shape[:-1])
    if x.shape[-1] == 0:
        top = torch.full_like(x.sum(-1), -math.inf)
    else:
        top = x.amax(-1)
    weights = (x - torch.where(empty, 0.0, top).unsqueeze(-1)).exp()
    total = weights.sum(-1)
    lse = torch.where(empty, math.inf, top + total.log())
    factor = torch.where(empty, 0.0, 1 / total)
    if sink is not None:
        gap = sink.double().view(h_kv, -1) - lse
        factor = torch.where(empty, 0.0, factor * torch.sigmoid(-gap))
    out = (weights @ k[..., :d_v]) * factor.unsqueeze(-1)
    squares = k[..., :d_v].square().sum((-1, -2)) / (d_v * mask.sum(-1).clamp(min=1))
    rms = squares.sqrt()[..., None].expand(lse.shape)

    def by_head(value: Tensor) -> Tensor:
        return value.flatten(2, 3).transpose(1, 2).cpu()

    return Expected(out.flatten(2, 3).cpu(), by_head(lse), by_head(top), by_head(rms))

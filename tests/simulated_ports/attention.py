"""The arithmetic that the fakes share: straightforward float64, one row and query at a time.

It reads memory as the kernels do: the block table up to a row's last page and no further, and
slots by address, so that a bad address is an error here too.
"""

from __future__ import annotations

import math

import torch


def softmax_row(q, keys, scale, d_v):
    """(out, lse, max) of q (h, d) over keys (n, d); nan, as garbage, where n is 0."""
    if keys.shape[0] == 0:
        nan = torch.full((q.shape[0],), float("nan"), dtype=torch.float64)
        return nan.unsqueeze(1).expand(-1, d_v), nan, nan
    logits = q.double() @ keys.double().T * scale
    lse = logits.logsumexp(-1)
    weights = (logits - lse.unsqueeze(-1)).exp()
    return weights @ keys[:, :d_v].double(), lse, logits.amax(-1)


def heads(q, keys, scale, d_v):
    """``softmax_row`` for keys (n, h_kv, d): query head i uses kv head i // (h_q / h_kv)."""
    group = q.shape[0] // keys.shape[1]
    parts = [
        softmax_row(q[j * group : (j + 1) * group], keys[:, j], scale, d_v)
        for j in range(keys.shape[1])
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def gather(k_cache, table, length):
    """The keys (length, h_kv, d) of one row; a page id that is not an address is an error."""
    page = k_cache.shape[1]
    pages = table[: math.ceil(length / page)].tolist()
    for entry in pages:
        if not 0 <= entry < k_cache.shape[0]:
            raise RuntimeError(f"illegal memory access: page {entry}")
    if not pages:
        return k_cache[:0].reshape(0, *k_cache.shape[2:])
    return torch.cat([k_cache[entry] for entry in pages])[:length]


def dense(q, k_cache, table, lens, d_v, scale, causal):
    """(out in q's dtype, lse float32 natural) of a dense decode; rows without a key are nan."""
    batch, s_q, h_q, _ = q.shape
    out = q.new_empty((batch, s_q, h_q, d_v))
    lse = torch.empty((batch, h_q, s_q), dtype=torch.float32)
    for b, length in enumerate(lens.tolist()):
        keys = gather(k_cache, table[b], length)
        for t in range(s_q):
            visible = max(0, length - s_q + t + 1) if causal else length
            row = heads(q[b, t], keys[:visible], scale, d_v)
            out[b, t], lse[b, :, t] = row[0].to(q.dtype), row[1].float()
    return out, lse


def walks_back_from_the_last_page(table, lens, page):
    """What a FlashAttention-style kernel reads first: for a row of length 0, the table at -1."""
    for b, length in enumerate(lens.tolist()):
        last = (length - 1) // page
        if last < 0 or last >= table.shape[1]:
            raise RuntimeError(f"illegal memory access: block_table[{b}][{last}]")

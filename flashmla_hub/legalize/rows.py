"""Rewrites of rows and results: fold s_q into the batch, repair empty rows, convert the lse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize.wrapper import Wrapper, deliver
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL, KernelKey

_INF = float("inf")


def narrow_s_q(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    """Each query becomes a row of the batch with the length that it may see."""
    unwanted = key.s_q not in takes.s_q or (key.causal and key.causal not in takes.causal)
    if key.op == SPARSE_PREFILL or key.s_q == 1 or not unwanted or 1 not in takes.s_q:
        return None
    return key.with_(s_q=1, causal=False)


def cost_s_q(wide: KernelKey, narrow: KernelKey) -> str:
    return f"{wide.s_q} queries of a request as {wide.s_q} rows: its KV is read {wide.s_q} times"


class FoldSQ(Wrapper):
    """(batch, s_q) -> (batch * s_q, 1); a causal query t of a row sees len - s_q + t + 1 keys."""

    def run(self, q: Tensor, k_cache: Tensor, *args: Any) -> Any:
        batch, s_q, h_q, d = q.shape
        rows = q.reshape(batch * s_q, 1, h_q, d)
        if self.wide.op == DENSE_DECODE:
            table, lens, scale, out, lse, plan = args
            new = self.inner.run(
                rows, k_cache, self._rows(table), self._visible(lens), scale, None, None, plan
            )
        else:
            indices, scale, out, lse, length, sink, extra, extra_indices, extra_length, plan = args
            new = self.inner.run(
                rows,
                k_cache,
                indices.reshape(batch * s_q, 1, -1),
                scale,
                None,
                None,
                None if length is None else self._rows(length),
                sink,
                extra,
                None if extra_indices is None else extra_indices.reshape(batch * s_q, 1, -1),
                None if extra_length is None else self._rows(extra_length),
                plan,
            )
        new_out, new_lse = new
        new_out = new_out.reshape(batch, s_q, h_q, new_out.shape[-1])
        new_lse = new_lse.reshape(batch, s_q, h_q).transpose(1, 2)
        return deliver(new_out, out), deliver(new_lse, lse)

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        return self.inner.plan(
            None if block_table is None else self._rows(block_table),
            None if cache_seqlens is None else self._visible(cache_seqlens),
        )

    def _rows(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.wide.s_q, 0)  # an int count: no read of the device

    def _visible(self, lens: Tensor) -> Tensor:
        s_q = self.wide.s_q
        if not self.wide.causal:
            return self._rows(lens)
        back = torch.arange(1 - s_q, 1, dtype=torch.int32, device=lens.device)
        return (lens.unsqueeze(1) + back).clamp_(min=0).flatten()


def narrow_empty(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    return None


def cost_empty(wide: KernelKey, narrow: KernelKey) -> str:
    return "rows with no visible key set to out 0, lse +inf after the kernel"


class RepairEmptyRows(Wrapper):
    """Rows with no visible key get what C1.10 asks for, whatever the port left there."""

    def run(self, q: Tensor, kv: Tensor, *args: Any) -> Any:
        if self.wide.op == SPARSE_PREFILL:
            indices, _, _, _, _, length, *_ = args
            empty = ~_any_valid(indices, kv.shape[0], length)  # (s_q, h_kv)
            empty = empty.repeat_interleave(self.wide.h_q // self.wide.h_kv, 1)
            out, max_logits, lse = self.inner.run(q, kv, *args)
            out.masked_fill_(empty.unsqueeze(-1), 0)
            return out, max_logits.masked_fill_(empty, -_INF), lse.masked_fill_(empty, _INF)
        if self.wide.op == DENSE_DECODE:
            lens, s_q = args[1], self.wide.s_q
            seen = lens.unsqueeze(1).expand(-1, s_q)
            if self.wide.causal:
                seen = seen + torch.arange(1 - s_q, 1, dtype=torch.int32, device=lens.device)
            empty = (seen <= 0) | (lens.unsqueeze(1) <= 0)
        else:
            indices, _, _, _, length, _, extra, extra_indices, extra_length, _ = args
            valid = _any_valid(indices, kv.shape[0] * kv.shape[1], length)
            if extra_indices is not None:
                slots = extra.shape[0] * extra.shape[1]
                valid = valid | _any_valid(extra_indices, slots, extra_length)
            empty = ~valid
        out, lse = self.inner.run(q, kv, *args)
        out.masked_fill_(empty[:, :, None, None], 0)
        return out, lse.masked_fill_(empty.unsqueeze(1), _INF)


def _any_valid(indices: Tensor, slots: int, length: Tensor | None) -> Tensor:
    """(rows, x, topk) -> (rows, x): is any entry that counts a slot of the cache?"""
    valid = (indices >= 0) & (indices < slots)
    if length is not None:
        entry = torch.arange(indices.shape[-1], dtype=torch.int32, device=indices.device)
        valid &= entry < length.view(-1, 1, 1)
    return valid.any(-1)


def narrow_lse(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    return None


def cost_lse(wide: KernelKey, narrow: KernelKey) -> str:
    return "lse multiplied by ln 2"


class LseBase(Wrapper):
    """A base-2 lse becomes natural; infinities stay."""

    def run(self, *args: Any) -> Any:
        *rest, lse = self.inner.run(*args)
        return (*rest, lse.mul_(math.log(2.0)))

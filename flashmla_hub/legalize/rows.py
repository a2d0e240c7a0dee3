"""Rewrites of rows and results: fold s_q into the batch, repair empty rows, convert the lse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize.wrapper import Wrapper, deliver
from flashmla_hub.request import SPARSE_PREFILL, KernelKey

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

    def run(self, call: DenseDecode | SparseDecode) -> Any:
        batch, s_q, h_q, d = call.q.shape
        changes: dict[str, Any] = {"q": call.q.reshape(batch * s_q, 1, h_q, d)}
        if isinstance(call, DenseDecode):
            changes["block_table"] = self._rows(call.block_table)
            changes["cache_seqlens"] = self._visible(call.cache_seqlens)
        else:
            for name in ("indices", "extra_indices"):
                if (lists := getattr(call, name)) is not None:
                    changes[name] = lists.reshape(batch * s_q, 1, -1)
            for name in ("topk_length", "extra_topk_length"):
                if (lengths := getattr(call, name)) is not None:
                    changes[name] = self._rows(lengths)
        new_out, new_lse = self.inner.run(call._replace(out=None, lse=None, **changes))
        new_out = new_out.reshape(batch, s_q, h_q, new_out.shape[-1])
        new_lse = new_lse.reshape(batch, s_q, h_q).transpose(1, 2)
        return deliver(new_out, call.out), deliver(new_lse, call.lse)

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

    def run(self, call: Any) -> Any:
        if isinstance(call, SparsePrefill):
            empty = ~_any_valid(call.indices, call.kv.shape[0], call.topk_length)  # (s_q, h_kv)
            empty = empty.repeat_interleave(self.wide.h_q // self.wide.h_kv, 1)
            out, max_logits, lse = self.inner.run(call)
            out.masked_fill_(empty.unsqueeze(-1), 0)
            return out, max_logits.masked_fill_(empty, -_INF), lse.masked_fill_(empty, _INF)
        empty = self._empty(call)
        out, lse = self.inner.run(call)
        out.masked_fill_(empty[:, :, None, None], 0)
        return out, lse.masked_fill_(empty.unsqueeze(1), _INF)

    def _empty(self, call: DenseDecode | SparseDecode) -> Tensor:
        """(batch, s_q) bool: queries with no visible key."""
        if isinstance(call, DenseDecode):
            lens, s_q = call.cache_seqlens, self.wide.s_q
            seen = lens.unsqueeze(1).expand(-1, s_q)
            if self.wide.causal:
                seen = seen + torch.arange(1 - s_q, 1, dtype=torch.int32, device=lens.device)
            return (seen <= 0) | (lens.unsqueeze(1) <= 0)
        slots = call.k_cache.shape[0] * call.k_cache.shape[1]
        valid = _any_valid(call.indices, slots, call.topk_length)
        if call.extra_k_cache is not None and call.extra_indices is not None:
            slots = call.extra_k_cache.shape[0] * call.extra_k_cache.shape[1]
            valid = valid | _any_valid(call.extra_indices, slots, call.extra_topk_length)
        return ~valid


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

    def run(self, call: Any) -> Any:
        *rest, lse = self.inner.run(call)
        return (*rest, lse.mul_(math.log(2.0)))

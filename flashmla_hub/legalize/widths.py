"""Rewrites of widths: pad query heads, pad topk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize.wrapper import Wrapper, deliver
from flashmla_hub.request import KernelKey


def narrow_heads(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    """The next head count the port takes. Whole groups grow: KV head j keeps its query heads."""
    if key.h_q in takes.h_q:
        return None
    wider = takes.h_q.next_above(key.h_q)
    while wider is not None and wider <= 16 * key.h_q + 4096:  # a wider pad helps nobody
        if wider % key.h_kv == 0:
            return key.with_(h_q=wider)
        wider = takes.h_q.next_above(wider + 1)
    return None


def cost_heads(wide: KernelKey, narrow: KernelKey) -> str:
    extra = 100 * (narrow.h_q - wide.h_q) / wide.h_q
    return f"{wide.h_q} query heads computed as {narrow.h_q} (+{extra:.0f} % query rows)"


class PadHeads(Wrapper):
    """Zero query heads are added to each KV head's group and their outputs dropped."""

    def run(self, call: Any) -> Any:
        h_kv = self.wide.h_kv
        group, padded = self.wide.h_q // h_kv, self.narrow.h_q // h_kv
        q = call.q
        lead = q.shape[:-2]
        wide_q = q.new_zeros((*lead, h_kv, padded, q.shape[-1]))
        wide_q[..., :group, :] = q.reshape(*lead, h_kv, group, q.shape[-1])
        changes: dict[str, Any] = {"q": wide_q.view(*lead, h_kv * padded, q.shape[-1])}
        if not isinstance(call, DenseDecode):
            changes["attn_sink"] = self._sink(call.attn_sink)

        def heads_last(x: Tensor) -> Tensor:  # (..., h, d_v) -> the wide request's heads
            x = x.reshape(*x.shape[:-2], h_kv, padded, x.shape[-1])[..., :group, :]
            return x.reshape(*x.shape[:-3], h_kv * group, x.shape[-1])

        if isinstance(call, SparsePrefill):
            new_out, new_max, new_lse = self.inner.run(
                call._replace(out=None, lse=None, max_logits=None, **changes)
            )

            def columns(x: Tensor) -> Tensor:  # (s_q, h_q)
                return heads_last(x.unsqueeze(-1)).squeeze(-1)

            return (
                deliver(heads_last(new_out), call.out),
                deliver(columns(new_max), call.max_logits),
                deliver(columns(new_lse), call.lse),
            )
        new_out, new_lse = self.inner.run(call._replace(out=None, lse=None, **changes))
        # lse is (batch, h, s_q): its heads are last but one too
        return deliver(heads_last(new_out), call.out), deliver(heads_last(new_lse), call.lse)

    def _sink(self, sink: Tensor | None) -> Tensor | None:
        if sink is None:
            return None
        h_kv = self.wide.h_kv
        group, padded = self.wide.h_q // h_kv, self.narrow.h_q // h_kv
        wide = sink.new_full((h_kv, padded), float("-inf"))  # -inf changes nothing (C4.2)
        wide[:, :group] = sink.view(h_kv, group)
        return wide.view(-1)


def narrow_topk(key: KernelKey, takes: Capabilities) -> KernelKey | None:
    changes: dict[str, int] = {}
    for name in ("topk", "extra_topk"):
        width = getattr(key, name)
        accepted = getattr(takes, name)
        if width and width not in accepted:
            wider = accepted.next_above(width)
            if wider is None:
                return None
            changes[name] = wider
    return key.with_(**changes) if changes else None


def cost_topk(wide: KernelKey, narrow: KernelKey) -> str:
    text = f"topk {wide.topk} padded to {narrow.topk} with -1"
    if wide.extra_topk != narrow.extra_topk:
        text += f", extra topk {wide.extra_topk} to {narrow.extra_topk}"
    return text


class PadTopk(Wrapper):
    """Invalid entries (-1) fill indices up to a width that the port takes."""

    def run(self, call: Any) -> Any:
        changes = {"indices": _pad_last(call.indices, self.narrow.topk)}
        if isinstance(call, SparseDecode) and call.extra_indices is not None:
            changes["extra_indices"] = _pad_last(call.extra_indices, self.narrow.extra_topk)
        return self.inner.run(call._replace(**changes))


def _pad_last(indices: Tensor, width: int) -> Tensor:
    missing = width - indices.shape[-1]
    if not missing:
        return indices
    return torch.nn.functional.pad(indices, (0, missing), value=-1)

"""The oracle of a run: float64, one query at a time, straight from the contract, in torch.

It reads the very tensors the port was given, through the block table. Every step is a method, so
that diagnosis.py can make each known mistake by overriding one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashmla_hub.conformance.fp8 import LAYOUTS, Layout
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.samples import Probe, probe
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Outputs:
    """Outputs by query vector, whatever the op: ``out`` (rows, queries, heads, d_v), ``lse`` and
    ``max_logits`` (rows, queries, heads), ``v_rms`` (rows, queries), the RMS of V over visible
    keys; of those rows, queries and heads that ``probe`` names."""

    out: F64
    lse: F64
    max_logits: F64
    v_rms: F64
    probe: Probe

    def part(self, tensor: Tensor) -> F64:
        """The compared vectors of a tensor (batch, s_q, h_q, ...) of the call."""
        if not self.probe.whole:
            axes = (self.probe.rows, self.probe.queries, self.probe.heads)
            for axis, chosen in enumerate(axes):
                where = torch.tensor(chosen, dtype=torch.long, device=tensor.device)
                tensor = tensor.index_select(axis, where)
        return np.asarray(tensor.detach().cpu().double().numpy())


class Oracle:
    def __init__(self, call: Call) -> None:
        self.call, self.case, self.key = call, call.case, call.case.key
        self.batch = call.q.shape[0]
        self.s_q = self.key.s_q
        self.table = None if call.block_table is None else call.block_table.cpu().long()
        self.lengths = None if call.cache_seqlens is None else call.cache_seqlens.cpu().long()
        q = call.q.unsqueeze(1) if self.key.op == SPARSE_PREFILL else call.q
        self.queries = q.cpu()
        self._keys: dict[int, Tensor] = {}
        self.heads = torch.arange(self.key.h_q)  # fewer: only those heads are computed

    # which keys

    def length(self, row: int) -> int:
        """C1.15: below 0 counts as 0, above the table's capacity as that."""
        assert self.table is not None and self.lengths is not None
        capacity = self.table.shape[1] * self.key.page_block_size
        return min(max(int(self.lengths[row]), 0), capacity)

    def pages(self, row: int, length: int) -> Tensor:
        assert self.table is not None
        return self.table[row, : -(-length // self.key.page_block_size)]

    def visible(self, row: int, t: int, length: int) -> int:
        """C1.7: how many leading keys query t sees."""
        return max(length - self.s_q + t + 1, 0) if self.key.causal else length

    def keys(self, row: int, t: int) -> Tensor:
        """(n, h_kv, d_qk) float64: the keys that query t of a row sees."""
        if self.key.op != DENSE_DECODE:
            return self.sparse_keys(row, t)
        length = self.length(row)
        if row not in self._keys:
            self._keys = {row: self.fetch(self.call.kv, self.pages(row, length))}
        return self._keys[row][: self.visible(row, t, length)]

    def fetch(self, cache: Tensor, pages: Tensor) -> Tensor:
        """All tokens of ``pages``, one after the other."""
        if self.key.kv_format != "dense":
            picked = cache.view(torch.uint8)[pages.to(cache.device)].cpu()
            return decode_pages(picked, LAYOUTS[self.key.kv_format])[:, None, :]
        return cache[pages.to(cache.device)].cpu().double().flatten(0, 1)

    # sparse calls

    def sparse_keys(self, row: int, t: int) -> Tensor:
        call = self.call
        picked = [self.pick(call.kv, self.slots(row, t, call.indices, call.topk_length, call.kv))]
        if call.extra_kv is not None:
            slots = self.slots(row, t, call.extra_indices, call.extra_topk_length, call.extra_kv)
            picked.append(self.pick(call.extra_kv, slots))
        return torch.cat(picked)

    def slots(
        self, row: int, t: int, indices: Tensor | None, lengths: Tensor | None, cache: Tensor
    ) -> Tensor:
        """C4.1: the entries that count and are valid, duplicates included."""
        assert indices is not None
        slots = indices[row, t].cpu().long()
        if lengths is not None:
            slots = slots[: int(lengths[row])]
        return slots[(slots >= 0) & (slots < self.capacity(cache))]

    def capacity(self, cache: Tensor) -> int:
        flat = self.key.op == SPARSE_PREFILL
        return cache.shape[0] if flat else cache.shape[0] * cache.shape[1]

    def pick(self, cache: Tensor, slots: Tensor) -> Tensor:
        if self.key.op == SPARSE_PREFILL:
            return cache[slots.to(cache.device)].cpu().double()
        size = cache.shape[1]
        pages, where = torch.unique(slots // size, return_inverse=True)
        return self.fetch(cache, pages)[where * size + slots % size]

    # the arithmetic

    @property
    def scale(self) -> float:
        return self.key.d_qk**-0.5 if self.call.scale is None else self.call.scale

    def values(self, keys: Tensor) -> Tensor:
        return keys[..., : self.key.d_v]

    def kv_head(self) -> Tensor:
        """C1.6: the kv head of each head."""
        return self.heads // (self.key.h_q // self.key.h_kv)

    def dots(self, q: Tensor, keys: Tensor) -> Tensor:
        """(h_q, n) unscaled logits."""
        if self.key.h_kv == 1:
            return q @ keys[:, 0].T
        result = q.new_empty((len(q), len(keys)))
        for head, mine in self._groups():
            result[mine] = q[mine] @ keys[:, head].T
        return result

    def _groups(self) -> Iterator[tuple[int, Tensor]]:
        """(kv head, the heads that use it)."""
        of = self.kv_head()
        for head in of.unique().tolist():
            yield head, of == head

    def logits(self, q: Tensor, keys: Tensor) -> Tensor:
        return self.dots(q, keys) * self.scale

    def weigh(self, weights: Tensor, values: Tensor) -> Tensor:
        """(h_q, d_v): the weighted sum of V."""
        if self.key.h_kv == 1:
            return weights @ values[:, 0]
        result = weights.new_empty((len(weights), values.shape[-1]))
        for head, mine in self._groups():
            result[mine] = weights[mine] @ values[:, head]
        return result

    def attend(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(out, lse) of one query with at least one key."""
        top = logits.max(dim=1).values
        weights = torch.exp(logits - top[:, None])
        total = weights.sum(dim=1)
        return self.weigh(weights / total[:, None], values), top + torch.log(total)

    def empty(self) -> tuple[Tensor, Tensor]:
        """C1.10: (out, lse) of a query without a key."""
        h_q, d_v = len(self.heads), self.key.d_v
        return (torch.zeros(h_q, d_v, dtype=torch.float64),
                torch.full((h_q,), float("inf"), dtype=torch.float64))  # fmt: skip

    def sink(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """C4.2."""
        if self.call.attn_sink is None:
            return out, lse
        return out * torch.sigmoid(lse - self.sinks())[:, None], lse

    def sinks(self) -> Tensor:
        assert self.call.attn_sink is not None
        return self.call.attn_sink.cpu().double()[self.heads]

    def query(self, row: int, t: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """(out, lse, max_logits, v_rms) of one query token."""
        keys = self.keys(row, t)
        if not len(keys):
            out, lse = self.empty()
            return out, lse, torch.full_like(lse, float("-inf")), 0.0
        values = self.values(keys)
        logits = self.logits(self.queries[row, t][self.heads].double(), keys)
        out, lse = self.sink(*self.attend(logits, values))
        return out, lse, logits.max(dim=1).values, float(values.square().mean().sqrt())

    def all(self) -> Outputs:
        """Outputs of the call, or of a large one's probe."""
        seen = probe(self.case)
        if self.batch != self.case.batch:  # some rows of the case's own
            seen = Probe(tuple(range(self.batch)), tuple(range(self.s_q)),
                         tuple(range(self.key.h_q)), True)  # fmt: skip
        self.heads = torch.tensor(seen.heads, dtype=torch.long)
        shape = (len(seen.rows), len(seen.queries), len(seen.heads))
        result = Outputs(np.zeros((*shape, self.key.d_v)), np.zeros(shape), np.zeros(shape),
                         np.zeros(shape[:2]), seen)  # fmt: skip
        for at, row in enumerate(seen.rows):
            for nth, t in enumerate(seen.queries):
                out, lse, top, rms = self.query(row, t)
                result.out[at, nth] = out.numpy()
                result.lse[at, nth] = lse.numpy()
                result.max_logits[at, nth] = top.numpy()
                result.v_rms[at, nth] = rms
        return result


def decode_pages(pages: Tensor, layout: Layout) -> Tensor:
    """(pages, size, 1, token_bytes) bytes as the tensor shows them -> (tokens, d) float64."""
    count, size = pages.shape[0], pages.shape[1]
    flat = pages.flatten(1)
    if layout.split:
        data = layout.token_bytes - layout.scale_bytes
        body = flat[:, : size * data].reshape(count * size, data)
        tail = flat[:, size * data : size * layout.token_bytes]
        tail = tail.reshape(count * size, layout.scale_bytes)
        codes, rope = body[:, : layout.coded], body[:, layout.coded :]
        scale = torch.exp2(tail[:, : layout.groups].double() - 127)
    else:
        tokens = flat.reshape(count * size, layout.token_bytes)
        codes, scales, rope = tokens.split(
            [layout.coded, layout.scale_bytes, 2 * layout.rope], dim=1
        )
        scale = scales.contiguous().view(torch.float32).double()
    value = codes.contiguous().view(torch.float8_e4m3fn).double()
    value = value.reshape(-1, layout.groups, layout.group) * scale[:, :, None]
    # float64 to bf16 goes through float32 in torch, twice rounded; one step of 2**-8 is once
    fraction, power = torch.frexp(value.flatten(1))
    rounded = torch.ldexp(torch.round(fraction * 256), power - 8)
    return torch.cat([rounded, rope.contiguous().view(torch.bfloat16).double()], dim=1)

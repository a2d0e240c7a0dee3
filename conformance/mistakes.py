"""Known mistakes as bent oracles: each overrides the one step that ports get wrong.

A mistake is a name, the clause it breaks, and oracles to try (several where ports differ in how
they make the same mistake). diagnosis.py asks which of them reproduces an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub.conformance.fp8 import LAYOUTS
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.oracle_torch import Oracle
from flashmla_hub.request import DENSE_DECODE, PACKED, SPARSE_PREFILL

Variants = Callable[[Call], Iterator[Oracle]]


@dataclass(frozen=True)
class Mistake:
    """``variants`` yields the oracles worth trying on a call: none where it cannot show."""

    name: str
    clause: str
    variants: Variants


class Lse(Oracle):
    """``change(lse, dots, logits)`` is the wrong lse; out stays right."""

    def __init__(self, call: Call, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(call)
        self.change = change
        self._dots = torch.empty(0)

    def dots(self, q: Tensor, keys: Tensor) -> Tensor:
        self._dots = super().dots(q, keys)
        return self._dots

    def attend(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = super().attend(logits, values)
        return out, self.change(lse, self._dots, logits)


class Scale(Oracle):
    def __init__(self, call: Call, factor: float) -> None:
        super().__init__(call)
        self.factor = factor

    def logits(self, q: Tensor, keys: Tensor) -> Tensor:
        return self.dots(q, keys) * self.factor


class Rounded(Oracle):
    """Logits, before or after the scale, held in a narrow type."""

    def __init__(self, call: Call, dtype: torch.dtype, after: bool) -> None:
        super().__init__(call)
        self.dtype, self.after = dtype, after

    def logits(self, q: Tensor, keys: Tensor) -> Tensor:
        if self.after:
            return super().logits(q, keys).to(self.dtype).double()
        return self.dots(q, keys).to(self.dtype).double() * self.scale


class RoundedInputs(Oracle):
    """q and K kept to ``bits`` significant bits: what tensor cores make of float32."""

    def __init__(self, call: Call, bits: int, cut: bool) -> None:
        super().__init__(call)
        self.step, self.whole = 2.0**bits, torch.trunc if cut else torch.round

    def cut(self, x: Tensor) -> Tensor:
        fraction, power = torch.frexp(x)
        return torch.ldexp(self.whole(fraction * self.step) / self.step, power)

    def dots(self, q: Tensor, keys: Tensor) -> Tensor:
        return super().dots(self.cut(q), self.cut(keys))


class NoMaximum(Oracle):
    """exp without the maximum taken off, in float32."""

    def attend(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.exp(logits.float())
        total = weights.sum(dim=1)
        out = self.weigh((weights / total[:, None]).double(), values)
        return out, torch.log(total).double()


class Visible(Oracle):
    """``count(length, s_q, t)`` keys are seen, up to ``room`` past the length."""

    def __init__(self, call: Call, count: Callable[[int, int, int], int], past: int = 0) -> None:
        super().__init__(call)
        self.count, self.past = count, past

    def pages(self, row: int, length: int) -> Tensor:
        return super().pages(row, length + self.past)

    def visible(self, row: int, t: int, length: int) -> int:
        return max(self.count(length, self.s_q, t), 0)


class Length(Oracle):
    """Rows' lengths are ``change(row, length)``."""

    def __init__(self, call: Call, change: Callable[[int, int], int]) -> None:
        super().__init__(call)
        self.change = change

    def length(self, row: int) -> int:
        return max(self.change(row, super().length(row)), 0)


class Pages(Oracle):
    """Page j of row b is ``choose(b, pages)[j]``."""

    def __init__(self, call: Call, choose: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__(call)
        self.choose = choose

    def pages(self, row: int, length: int) -> Tensor:
        return self.choose(row, super().pages(row, length)) % self.call.kv.shape[0]


class Values(Oracle):
    def values(self, keys: Tensor) -> Tensor:
        return keys[..., -self.key.d_v :]


class Rope(Oracle):
    def dots(self, q: Tensor, keys: Tensor) -> Tensor:
        return super().dots(q[:, : self.key.d_v], keys[..., : self.key.d_v])


class Interleaved(Oracle):
    def kv_head(self) -> Tensor:
        return self.heads % self.key.h_kv


class Dropped(Oracle):
    """Of splits of ``size`` keys the ``which``-th (-1: the last) is lost; lse too, unless
    ``keep_lse``. Queries with one split are right."""

    def __init__(self, call: Call, size: int, which: int, keep_lse: bool) -> None:
        super().__init__(call)
        self.size, self.which, self.keep_lse = size, which, keep_lse

    def attend(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        count = -(-logits.shape[1] // self.size)
        which = self.which % count if self.which < 0 else self.which
        kept = torch.arange(logits.shape[1]) // self.size != which
        if not kept.any() or kept.all():
            return super().attend(logits, values)
        out, lse = super().attend(logits[:, kept], values[kept])
        return out, super().attend(logits, values)[1] if self.keep_lse else lse


class Unweighted(Oracle):
    """Splits of ``size`` keys merged without their weights: their normalised outputs averaged,
    or (``sums``) their sums added as if they had one maximum."""

    def __init__(self, call: Call, size: int, sums: bool) -> None:
        super().__init__(call)
        self.size, self.sums = size, sums

    def attend(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(zip(logits.split(self.size, dim=1), values.split(self.size), strict=True))
        whole = super().attend
        if not self.sums:
            outs = [whole(part, v)[0] for part, v in parts]
            return torch.stack(outs).mean(dim=0), whole(logits, values)[1]
        weights = [torch.exp(part - part.max(dim=1).values[:, None]) for part, _ in parts]
        total = torch.stack([w.sum(dim=1) for w in weights]).sum(dim=0)
        outs = [self.weigh(w, v) for w, (_, v) in zip(weights, parts, strict=True)]
        return (torch.stack(outs).sum(dim=0) / total[:, None],
                logits.max(dim=1).values + torch.log(total))  # fmt: skip


class Strides(Oracle):
    """The cache, or q, read as if packed."""

    def __init__(self, call: Call, page: bool, token: bool, q: bool = False) -> None:
        super().__init__(call)
        kv = call.kv
        if kv.dim() == 3:  # sparse_prefill's flat array
            self.packed = kv
        else:
            self.packed = self._packed(kv, page, token)
        if q:
            flat = call.storages["q"].view(call.q.dtype).flatten()
            self.queries = flat[: call.q.numel()].view(call.q.shape).cpu()

    @staticmethod
    def _packed(kv: Tensor, page: bool, token: bool) -> Tensor:
        token_stride = kv.shape[2] * kv.shape[3] if token else kv.stride(1)
        page_stride = kv.shape[1] * token_stride if page else kv.stride(0)
        strides = (page_stride, token_stride, *kv.stride()[2:])
        return kv.as_strided(kv.shape, strides, kv.storage_offset())

    def fetch(self, cache: Tensor, pages: Tensor) -> Tensor:
        return super().fetch(self.packed if cache is self.call.kv else cache, pages)


class Wrapped(Oracle):
    """Page offsets wrapped: ``bits`` bits of elements or bytes, signed ones read as zeros."""

    def __init__(self, call: Call, bits: int, unit: int, signed: bool) -> None:
        super().__init__(call)
        self.limit, self.unit, self.signed = 1 << bits, unit, signed

    def fetch(self, cache: Tensor, pages: Tensor) -> Tensor:
        parts = []
        for page in pages.tolist():
            offset = page * cache.stride(0) * self.unit
            wrapped = offset % self.limit // self.unit
            if self.signed and offset % (2 * self.limit) >= self.limit:
                parts.append(torch.zeros(cache.shape[1:], dtype=torch.float64))
                continue
            view = cache.as_strided(cache.shape[1:], cache.stride()[1:], wrapped)
            parts.append(view.cpu().double())
        return torch.cat(parts) if parts else super().fetch(cache, pages)


class Slots(Oracle):
    """``change(slots, capacity)`` makes the slots that count of an entry list."""

    def __init__(
        self, call: Call, change: Callable[[Tensor, int], Tensor], whole: bool = False
    ) -> None:
        super().__init__(call)
        self.change, self.whole = change, whole

    def slots(
        self, row: int, t: int, indices: Tensor | None, lengths: Tensor | None, cache: Tensor
    ) -> Tensor:
        assert indices is not None
        entries = indices[row, t].cpu().long()
        if lengths is not None and not self.whole:
            entries = entries[: int(lengths[row])]
        capacity = self.capacity(cache)
        changed = self.change(entries, capacity)
        return changed[(changed >= 0) & (changed < capacity)]


SinkChange = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Sink(Oracle):
    def __init__(self, call: Call, change: SinkChange) -> None:
        super().__init__(call)
        self.change = change

    def sink(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return self.change(out, lse, self.sinks())


class OneCache(Oracle):
    def sparse_keys(self, row: int, t: int) -> Tensor:
        call = self.call
        return self.pick(call.kv, self.slots(row, t, call.indices, call.topk_length, call.kv))


class Unscaled(Oracle):
    """The FP8 cache's codes taken without their scales, or all with the token's first one."""

    def __init__(self, call: Call, first: bool) -> None:
        super().__init__(call)
        self.first = first

    def fetch(self, cache: Tensor, pages: Tensor) -> Tensor:
        layout = LAYOUTS[self.key.kv_format]
        raw = cache.view(torch.uint8)[pages.to(cache.device)].cpu()
        right = super().fetch(cache, pages)
        width = layout.token_bytes - (layout.scale_bytes if layout.split else 0)
        body = raw.flatten(1)[:, : raw.shape[1] * width].reshape(len(right), width)
        codes = body[:, : layout.coded].contiguous().view(torch.float8_e4m3fn).double()
        if self.first:
            group = right[:, 0, : layout.group].abs().sum(dim=1)
            codes *= (group / codes[:, : layout.group].abs().sum(dim=1))[:, None]
        return torch.cat([codes[:, None, :], right[:, :, layout.coded :]], dim=2)


def is_dense(call: Call) -> bool:
    return call.case.key.op == DENSE_DECODE


def is_wide(call: Call) -> bool:
    return is_dense(call) and call.case.key.s_q > 1


def is_strided(call: Call) -> bool:
    return is_dense(call) and call.case.key.kv_strides != PACKED


def is_sparse_pool(call: Call) -> bool:
    return call.case.key.op not in (DENSE_DECODE, SPARSE_PREFILL)

"""Kernels that compute the wrong number on ordinary inputs, each by one well-known mistake."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.conformance.mutants.kernel import HonestKernel

Parts = list[tuple[Tensor, Tensor, Tensor]]


class LseBase2(HonestKernel):
    def lse(self, lse: Tensor) -> Tensor:
        return lse / math.log(2)


class LseUnscaled(HonestKernel):
    def attend(
        self, q: Tensor, k: Tensor, mask: Tensor, softmax_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, _, top = super().attend(q, k, mask, softmax_scale)
        return out, super().attend(q, k, mask, 1.0)[1], top


class LseNegated(HonestKernel):
    def lse(self, lse: Tensor) -> Tensor:
        return torch.where(lse == math.inf, lse, -lse)


class LseTransposed(HonestKernel):
    def lse_layout(self, lse: Tensor) -> Tensor:
        b, s, h = lse.shape
        return lse.contiguous().view(b, h, s)


class LseHalfPrecision(HonestKernel):
    def lse(self, lse: Tensor) -> Tensor:
        return lse.bfloat16().to(lse.dtype)


class ScaleIgnored(HonestKernel):
    def scale(self, softmax_scale: float) -> float:
        return 1.0


class ScaleTwice(HonestKernel):
    def scale(self, softmax_scale: float) -> float:
        return softmax_scale * softmax_scale


class ScaleOff5Percent(HonestKernel):
    def scale(self, softmax_scale: float) -> float:
        return softmax_scale * 1.05


class ScaleDefaultOnly(HonestKernel):
    """Right for the default scale, which it uses whatever the caller passes."""

    def scale(self, softmax_scale: float) -> float:
        return float(self.key.d_qk**-0.5)


class CausalTopLeft(HonestKernel):
    def visible(self, length: Tensor, keys: int) -> Tensor:
        if not self.key.causal:
            return super().visible(length, keys)
        j, t = torch.arange(keys), torch.arange(self.key.s_q)[:, None]
        return (j <= t) & (j < length)


class CausalIgnored(HonestKernel):
    def visible(self, length: Tensor, keys: int) -> Tensor:
        return (torch.arange(keys) < length).expand(self.key.s_q, keys)


class CausalOffByOne(HonestKernel):
    def visible(self, length: Tensor, keys: int) -> Tensor:
        mask = super().visible(length, keys)
        if not self.key.causal:
            return mask
        j, t = torch.arange(keys), torch.arange(self.key.s_q)[:, None]
        return (j < length - self.key.s_q + t) & (j < length)


class LastTokenDropped(HonestKernel):
    def visible(self, length: Tensor, keys: int) -> Tensor:
        return super().visible(length, keys) & (torch.arange(keys) < length - 1)


class VLastColumns(HonestKernel):
    def value(self, k: Tensor) -> Tensor:
        return k[..., -self.key.d_v :]


class RopeIgnored(HonestKernel):
    def logits(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return super().logits(q[..., : self.key.d_v], k[..., : self.key.d_v], scale)


class HeadsInterleaved(HonestKernel):
    """Query head i uses kv head i % h_kv."""

    def heads(self, q: Tensor) -> Tensor:
        s, h, d = q.shape
        kv = self.key.h_kv
        return q.view(s, h // kv, kv, d).permute(2, 0, 1, 3).reshape(kv, s * (h // kv), d)

    def unheads(self, x: Tensor, s: int) -> Tensor:
        kv, group = self.key.h_kv, self.key.h_q // self.key.h_kv
        x = x.view(kv, s, group, *x.shape[2:])
        return x.permute(1, 2, 0, *range(3, x.dim())).flatten(1, 2)


class HeadsOver64(HonestKernel):
    """A grid for 64 heads: the heads past them repeat the first ones."""

    def heads(self, q: Tensor) -> Tensor:
        if q.shape[1] > 64:
            q = q[:, torch.arange(q.shape[1]) % 64]
        return super().heads(q)


class SplitLost(HonestKernel):
    """The second split's partial result never reaches the combine step."""

    split = 128

    def combine(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        return super().combine([*parts[:2], *parts[3:]])  # parts[0] is the neutral element


class LastSplitLost(HonestKernel):
    """The last of several splits is written after the combine step has read it."""

    def combine(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        used = torch.stack([total > 0 for _, total, _ in parts])
        order = used.long().cumsum(dim=0)
        last = used & (order == order[-1]) & (order > 1)
        factor = torch.where(last, 0.0, 1.0)
        parts = [(o * f, n * f, t) for (o, n, t), f in zip(parts, factor, strict=True)]
        return super().combine(parts)


class SplitsUnweighted(HonestKernel):
    """Adds the splits up as if they had one maximum."""

    def combine(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        top = torch.stack([t for _, _, t in parts]).amax(dim=0)
        return sum_parts(parts, 0), sum_parts(parts, 1), top


def sum_parts(parts: Parts, which: int) -> Tensor:
    return torch.stack([p[which] for p in parts]).sum(dim=0)


class NoMaximum(HonestKernel):
    """Exponentials of the bare logits: overflows past 88."""

    def partial(
        self, q: Tensor, k: Tensor, mask: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, total, top = super().partial(q, k, mask, scale)
        factor = torch.exp(top)
        return out * factor, total * factor, torch.where(top == -math.inf, top, 0)


class Fp16Logits(HonestKernel):
    """Unscaled logits pass through fp16 and overflow past 65504."""

    def logits(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return super().logits(q, k, 1.0).half().to(q.dtype) * scale


class Bf16Logits(HonestKernel):
    """Logits rounded to bf16, as where scores go through memory in the dtype of q."""

    def logits(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return super().logits(q, k, scale).bfloat16().to(q.dtype)


class Fp8Weights(HonestKernel):
    """Softmax weights rounded to e4m3 before the second product, but not in their sum."""

    def weights(self, logits: Tensor, top: Tensor) -> Tensor:
        return super().weights(logits, top).to(torch.float8_e4m3fn).to(logits.dtype)


class Tf32(HonestKernel):
    """Products of fp32 inputs with 10 bits of mantissa."""

    def logits(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        if self.key.dtype == "float32":
            q, k = tf32(q), tf32(k)
        return super().logits(q, k, scale)


def tf32(x: Tensor) -> Tensor:
    bits = x.float().contiguous().view(torch.int32)
    return (bits & ~0x1FFF).view(torch.float32).to(x.dtype)


class EmptyRow(HonestKernel):
    """Rows without a visible key get ``out_value`` and ``lse_value``."""

    out_value, lse_value = 0.0, math.inf

    def finish(self, out: Tensor, total: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        got, lse = super().finish(out, total, top)
        empty = total == 0
        return (
            torch.where(empty, self.out_value, got),
            torch.where(empty[..., 0], self.lse_value, lse),
        )


class EmptyNan(EmptyRow):
    out_value, lse_value = math.nan, math.nan


class EmptyMinusInf(EmptyRow):
    lse_value = -math.inf


class EmptyZero(EmptyRow):
    lse_value = 0.0


class Unwritten(HonestKernel):
    """Leaves the memory of rows without a visible key as it was."""

    def results(self, out: Tensor, lse: Tensor, to: tuple[Tensor | None, Tensor | None]) -> Any:
        o, n = to
        empty = lse == math.inf
        if o is not None:
            out = torch.where(empty[..., None], o.to(out.dtype), out)
        if n is not None:
            lse = torch.where(empty, n.transpose(1, 2).to(lse.dtype), lse)
        return super().results(out, lse, to)


class OddHeadsUnwritten(HonestKernel):
    """Writes whole tiles of 16 heads only."""

    def results(self, out: Tensor, lse: Tensor, to: tuple[Tensor | None, Tensor | None]) -> Any:
        target, whole = to[0], out.shape[2] // 16 * 16
        if target is None:
            return super().results(out, lse, to)
        target[:, :, :whole].copy_(out[:, :, :whole])
        return target, super().results(out, lse, (None, to[1]))[1]

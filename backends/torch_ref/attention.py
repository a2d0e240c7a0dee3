"""Attention over sources of keys, chunk by chunk with an online softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashmla_hub.backends.torch_ref.sources import (
    CHUNK,
    PagedSource,
    SlotSource,
    values_at_hand,
)

WORKSPACE = 64 << 20  # bytes of scratch that a group of rows may take, about


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a call computes in: float32, and float64 for float32 inputs where devices have it.

    Logits of 1e4 leave float32 no digits for exp, and reduced-precision float32 matmuls (TF32)
    would show; bfloat16 and float16 inputs are exact in either.
    """
    has_float64 = device.type in ("cpu", "cuda")
    return torch.float64 if dtype == torch.float32 and has_float64 else torch.float32


def rows_at_once(q: Tensor, h_kv: int, compute: torch.dtype) -> int:
    """How many rows to compute together: as many as WORKSPACE takes, one on the CPU.

    One by one, a row's arithmetic cannot depend on the rest of the batch (contract C1.13), and a
    row need not walk as far as its longest neighbour.
    """
    if values_at_hand(q.device):
        return 1
    _, s_q, h_q, d_qk = q.shape
    keys, scores = h_kv * CHUNK * d_qk, s_q * h_q * CHUNK
    return max(1, WORKSPACE // ((2 * keys + 3 * scores) * compute.itemsize))


class OnlineSoftmax:
    """Softmax-weighted sums of V over keys that arrive in chunks.

    ``q`` is (rows, s_q, h_q, d_qk); state and results are laid out (rows, h_kv, s_q, group, ...).
    """

    def __init__(self, q: Tensor, h_kv: int, d_v: int, scale: float, compute: torch.dtype) -> None:
        rows, s_q, h_q, _ = q.shape
        self.shape = (rows, h_kv, s_q, h_q // h_kv)
        self.scale, self.d_v = scale, d_v
        grouped = q.unflatten(2, (h_kv, h_q // h_kv)).transpose(1, 2)
        self.q = grouped.reshape(rows, h_kv, -1, q.shape[-1]).to(compute)
        self.max = self.q.new_full(self.shape, -torch.inf)
        self.sum = self.q.new_zeros(self.shape)
        self.acc = self.q.new_zeros((*self.shape, d_v))

    def update(self, k: Tensor, visible: Tensor) -> None:
        scores = (self.q @ k.transpose(-1, -2)).mul_(self.scale)
        scores = scores.unflatten(2, self.shape[2:]).masked_fill_(~visible, -torch.inf)
        top = torch.maximum(self.max, scores.amax(-1))
        base = torch.where(top == -torch.inf, 0.0, top)  # nothing visible yet: exp(-inf - 0) = 0
        decay = (self.max - base).exp()
        weights = scores.sub_(base.unsqueeze(-1)).exp_()
        self.max = top
        self.sum = self.sum * decay + weights.sum(-1)
        self.acc *= decay.unsqueeze(-1)
        gain = (weights.flatten(2, 3) @ k[..., : self.d_v]).unflatten(2, self.shape[2:])
        # A query that sees nothing of the chunk may have read a stranger's token: 0 * NaN is NaN.
        self.acc += torch.where(visible.any(-1, keepdim=True), gain, 0.0)

    def finish(self, sink: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """out (rows, s_q, h_q, d_v), lse and the largest logit (rows, s_q, h_q)."""
        empty = self.sum == 0  # a visible key weighs 1 at the maximum
        lse = torch.where(empty, torch.inf, self.max + self.sum.log())
        factor = self.sum.reciprocal()
        if sink is not None:
            heads = sink.to(lse.dtype).view(1, self.shape[1], 1, self.shape[3])
            factor = factor * torch.sigmoid(lse - heads)
        out = self.acc * factor.unsqueeze(-1)
        out = torch.where(empty.unsqueeze(-1), 0.0, out)
        return tuple(t.transpose(1, 2).flatten(2, 3) for t in (out, lse, self.max))  # type: ignore[return-value]


def attend(
    q: Tensor,
    h_kv: int,
    d_v: int,
    sources: Sequence[PagedSource | SlotSource],
    scale: float,
    compute: torch.dtype,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of q (rows, s_q, h_q, d_qk) over the keys of all ``sources`` as one softmax.

    Returns out (rows, s_q, h_q, d_v) in the dtype of q, and in float32 lse and the largest scaled
    logit, both (rows, s_q, h_q).
    """
    rows, s_q, h_q, _ = q.shape
    out = q.new_empty((rows, s_q, h_q, d_v))
    lse = q.new_empty((rows, s_q, h_q), dtype=torch.float32)
    top = torch.empty_like(lse)
    step = rows_at_once(q, h_kv, compute)
    for start in range(0, rows, step):
        group = slice(start, start + step)
        state = OnlineSoftmax(q[group], h_kv, d_v, scale, compute)
        for source in sources:
            for chunk in source.chunks(group):
                state.update(chunk.k, chunk.visible)
        out[group], lse[group], top[group] = state.finish(sink)
    return out, lse, top

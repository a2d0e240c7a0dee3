"""Merging attention over parts of the keys into attention over all of them (contract C7.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError


def merge_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge the results of attending to disjoint parts of the keys.

    Args:
        outs: for each part, out (batch, s_q, h_q, d_v).
        lses: for each part, lse (batch, h_q, s_q), float32, natural logarithm. Where it is +inf
            (no visible key), -inf or NaN, the part counts for nothing and its out is not used.

    Returns:
        out (batch, s_q, h_q, d_v) in the dtype of ``outs[0]`` and lse (batch, h_q, s_q),
        float32; out 0 and lse +inf where no part has a visible key. Arithmetic is float32.
    """
    _check(outs, lses)
    finite = [torch.where(lse.isfinite(), lse.float(), -torch.inf) for lse in lses]
    top = finite[0]
    for lse in finite[1:]:
        top = torch.maximum(top, lse)
    empty = top == -torch.inf
    base = torch.where(empty, 0.0, top)

    total = torch.zeros_like(base)
    merged = torch.zeros_like(outs[0], dtype=torch.float32)
    for out, lse in zip(outs, finite, strict=True):
        weight = (lse - base).exp()
        total += weight
        per_vector = weight.transpose(1, 2).unsqueeze(-1)
        merged += torch.where(per_vector > 0, out.float() * per_vector, 0.0)
    divisor = torch.where(empty, 1.0, total)
    merged /= divisor.transpose(1, 2).unsqueeze(-1)
    return merged.to(outs[0].dtype), torch.where(empty, torch.inf, base + divisor.log())


def _check(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    if len(outs) == 0 or len(outs) != len(lses):
        actual = f"{len(outs)} outs and {len(lses)} lses"
        raise InvalidRequestError("outs, lses", actual, "as many of each, at least one")
    shape = outs[0].shape
    if len(shape) != 4:
        raise InvalidRequestError("outs[0]", tuple(shape), "(batch, s_q, h_q, d_v)")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.shape != shape:
            raise InvalidRequestError(f"outs[{i}]", tuple(out.shape), f"{tuple(shape)}")
        expected = (shape[0], shape[2], shape[1])
        if lse.shape != expected:
            raise InvalidRequestError(f"lses[{i}]", tuple(lse.shape), f"{expected}")

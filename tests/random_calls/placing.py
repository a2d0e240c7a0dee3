"""Equal values at unusual places: strides, addresses and orders of dimensions; lazily negated.

The gaps of a pool are filled with what must not be read.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """``view`` holds the values; ``pool`` is all the memory around it."""

    view: Tensor
    pool: Tensor


def garbage(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.full((n,), torch.nan, dtype=dtype, device=device)
    if dtype.itemsize == 1:
        return torch.full((n,), 0xFF, dtype=torch.uint8, device=device).view(dtype)
    return torch.full((n,), 2_147_480_000, dtype=dtype, device=device)


def place(values: Tensor, draw: random.Random, *, whole: int = 1, fixed: int = 1) -> Placed:
    """``values`` in a pool of its own. The last ``fixed`` dimensions stay packed; gaps and the base
    are multiples of ``whole`` elements, or of any number in one case of three."""
    lead = values.dim() - fixed
    order = list(range(lead))
    if draw.random() < 0.25:
        draw.shuffle(order)
    step = whole if draw.random() < 0.67 else draw.choice((1, 1, 2, 4, 8))
    width = math.prod(values.shape[lead:])
    strides = [0] * lead
    span = max(width, 1)
    span += -span % step if draw.random() < 0.5 else 0
    for dim in reversed(order):
        if draw.random() < 0.3:
            span += step * draw.randint(1, 9)
        strides[dim] = span
        span *= max(values.shape[dim], 1)
    inner = [1] * fixed
    for i in range(fixed - 2, -1, -1):
        inner[i] = inner[i + 1] * values.shape[lead + i + 1]
    base = step * draw.randint(1, 5) if draw.random() < 0.3 else 0
    pool = garbage(base + span + 16, values.dtype, values.device)
    view = pool.as_strided(values.shape, (*strides, *inner), base)
    view.view(_bits(values)).copy_(values.contiguous().view(_bits(values)))
    return Placed(view, pool)


def _bits(values: Tensor) -> torch.dtype:
    """An integer type of the same size: a conversion could quieten a NaN."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.element_size()]


def negated(values: Tensor, draw: random.Random) -> Tensor:
    """``values`` as a lazily negated view of their negatives, now and then."""
    if values.dtype.is_floating_point and values.element_size() > 1 and draw.random() < 0.08:
        flipped = values.view(_bits(values)) ^ (-(2 ** (8 * values.element_size() - 1)))
        laid = torch.empty_strided(
            values.shape, values.stride(), dtype=values.dtype, device=values.device
        )
        return torch._neg_view(laid.copy_(flipped.view(values.dtype)))
    return values


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(_bits(a)), b.contiguous().view(_bits(b)))

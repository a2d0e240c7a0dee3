"""The small numbers that layouts are made of, as torch operations on any device.

e4m3 has torch's own type; ue8m0 is an exponent byte (0 is 2**-127, 255 is NaN); e2m1 is a nibble:
a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX = 448.0
E2M1_MAX = 6.0
MIN_SCALE = 1e-4
MIN_E4M3 = 2.0**-9


def scale_exponent(amax: Tensor) -> Tensor:
    """The biased exponent (int32, 1..254) of the scale of groups whose largest |x| is ``amax``:
    ``2 ** ceil(log2(max(amax / 448, 1e-4)))``.

    Read off the bits of the float32, since log2 may round to the wrong side of a power of two.
    """
    bits = (amax / E4M3_MAX).clamp(min=MIN_SCALE).view(torch.int32)
    return ((bits >> 23) + ((bits & 0x7FFFFF) != 0)).clamp(1, 254)


def power_of_two(exponent: Tensor) -> Tensor:
    """float32 ``2 ** (exponent - 127)`` of a ue8m0 exponent as int32."""
    bits = torch.where(exponent == 0, 0x400000, exponent << 23)
    return torch.where(exponent == 255, 0x7FC00000, bits).to(torch.int32).view(torch.float32)


def to_e4m3(x: Tensor) -> Tensor:
    """Bytes of the nearest e4m3 values. Past the largest: finite ones become it, Inf NaN."""
    kept = torch.where(x.isinf(), torch.nan, x.clamp(-E4M3_MAX, E4M3_MAX))
    return kept.to(torch.float8_e4m3fn).view(torch.uint8)


def from_e4m3(raw: Tensor) -> Tensor:
    """float32 of e4m3 bytes."""
    return raw.view(torch.float8_e4m3fn).float()


def to_e2m1(x: Tensor) -> Tensor:
    """Bytes of pairs of the nearest e2m1 values along the last dimension (ties to the even code),
    the first of a pair in the low nibble. No NaN: a group's scale tells of one."""
    a = x.abs()
    code = (a > 0.25).to(torch.uint8)
    for tie, up in (
        (0.75, True),
        (1.25, False),
        (1.75, True),
        (2.5, False),
        (3.5, True),
        (5.0, False),
    ):
        code += (a >= tie) if up else (a > tie)
    code |= x.signbit().to(torch.uint8) << 3
    return code[..., ::2] | (code[..., 1::2] << 4)


def from_e2m1(raw: Tensor) -> Tensor:
    """float32 of the e2m1 values in bytes (..., n): (..., 2 n)."""
    code = torch.stack([raw & 15, raw >> 4], -1).flatten(-2).to(torch.int32)
    exponent, mantissa = (code >> 1) & 3, code & 1
    normal = ((exponent + 126) << 23) | (mantissa << 22)
    bits = torch.where(exponent == 0, mantissa * 0x3F000000, normal)  # 0.5 is the one subnormal
    return (bits | ((code & 8) << 28)).view(torch.float32)

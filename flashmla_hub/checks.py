"""Small checks that raise InvalidRequestError naming argument, actual and expected value.

They compare sizes and never hash them, so that they also run on the symbolic shapes of
torch.compile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError

DTYPE_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}
ONE_BYTE = tuple(
    dtype
    for name in ("uint8", "int8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
    if (dtype := getattr(torch, name, None)) is not None
)


def tensor(
    name: str,
    value: Any,
    shape: tuple[Any, ...],
    dtypes: tuple[torch.dtype, ...] = (),
    device: torch.device | None = None,
) -> Tensor:
    """``value`` if it is a tensor of this rank, sizes, dtype and device.

    ``shape`` holds an int where the size is fixed, a str (its name) where any size goes.
    """
    if not isinstance(value, Tensor):
        raise InvalidRequestError(name, _describe(value), f"a tensor {_shape(shape)}")
    if value.dim() != len(shape):
        raise InvalidRequestError(
            f"{name}.shape", tuple(value.shape), f"{len(shape)} dimensions {_shape(shape)}"
        )
    for axis, want in enumerate(shape):
        if not isinstance(want, str) and value.shape[axis] != want:
            raise InvalidRequestError(f"{name}.shape", tuple(value.shape), _shape(shape))
    if dtypes and value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise InvalidRequestError(f"{name}.dtype", str(value.dtype).removeprefix("torch."), names)
    if device is not None and value.device != device:
        raise InvalidRequestError(f"{name}.device", value.device, f"{device}, the device of q")
    if value.layout is not torch.strided:
        raise InvalidRequestError(f"{name}.layout", value.layout, "torch.strided")
    return value


def last_contiguous(name: str, value: Tensor) -> None:
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise InvalidRequestError(
            f"{name}.stride()", tuple(value.stride()), "last dimension contiguous (stride 1)"
        )


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(name, _describe(value), "True or False")
    return value


def scale(name: str, value: Any, d_qk: Any) -> float:
    if value is None:
        return float(d_qk) ** -0.5
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequestError(name, _describe(value), "a finite float, or None for d_qk**-0.5")
    if not math.isfinite(value):
        raise InvalidRequestError(name, value, "a finite float, or None for d_qk**-0.5")
    return float(value)


def no_grad(**tensors: Any) -> None:
    """Refuse inputs that want a gradient while grad mode is on: there is no backward."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise InvalidRequestError(
                f"{name}.requires_grad",
                True,
                "False: decode attention has no backward; call under torch.no_grad() or detach()",
            )


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False

    def span(x: Tensor) -> tuple[int, int]:
        reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + (reach + 1) * x.element_size()

    (a_low, a_high), (b_low, b_high) = span(a), span(b)
    return a_low < b_high and b_low < a_high


def _describe(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r}"[:80]


def _shape(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"

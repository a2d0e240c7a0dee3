"""Small checks that raise InvalidRequestError naming argument, actual and expected value.

They compare sizes and never hash them, so that they also run on the symbolic shapes of
torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError

DTYPE_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}
# A one-byte cache is bytes, or says that it holds e4m3; any other one-byte dtype says that the
# bytes mean something else (contract C3.0a).
ONE_BYTE = (torch.float8_e4m3fn, torch.uint8, torch.int8)
# Logits are float32: past this, one that is not small overflows.
MAX_SCALE = 1e30


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
        raise InvalidRequestError(name, describe(value), f"a tensor {_shape(shape)}")
    if value.layout is not torch.strided:
        raise InvalidRequestError(f"{name}.layout", value.layout, "torch.strided")
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
    return value


def last_contiguous(name: str, value: Tensor) -> None:
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise InvalidRequestError(
            f"{name}.stride()", tuple(value.stride()), "last dimension contiguous (stride 1)"
        )


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(name, describe(value), "True or False")
    return value


def optional_flag(name: str, value: Any) -> bool | None:
    return None if value is None else flag(name, value)


def text(name: str, value: Any, expected: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(name, describe(value), f"{expected}, a str, or None")
    return value


def scale(name: str, value: Any, d_qk: Any) -> float:
    if value is None:
        return float(d_qk) ** -0.5
    finite = f"a float from {-MAX_SCALE:g} to {MAX_SCALE:g}, or None for d_qk**-0.5"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequestError(name, describe(value), finite)
    if not -MAX_SCALE <= value <= MAX_SCALE:  # NaN compares false
        raise InvalidRequestError(name, describe(value), finite)
    return float(value)


def no_grad(tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that want a gradient while grad mode is on: there is no backward."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if value.requires_grad:
            raise InvalidRequestError(
                f"{name}.requires_grad",
                True,
                "False: decode attention has no backward; call under torch.no_grad() or detach()",
            )


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet; those of tensors without memory (fake ones)
    do where they are views of one storage."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata and _unreal(a):
        return False

    def span(x: Tensor) -> tuple[Any, Any]:
        reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        base = x.storage_offset() * x.element_size() if _unreal(x) else x.data_ptr()
        return base, base + (reach + 1) * x.element_size()

    (a_low, a_high), (b_low, b_high) = span(a), span(b)
    return bool(a_low < b_high and b_low < a_high)


def one_place_each(name: str, value: Tensor) -> None:
    """Refuse an output whose elements share memory (an expanded tensor)."""
    reach = 1
    for n, stride in sorted(zip(value.shape, value.stride(), strict=True), key=lambda d: d[1]):
        if n > 1:
            if stride < reach:
                raise InvalidRequestError(
                    f"{name}.stride()", tuple(value.stride()), "a place in memory for each element"
                )
            reach = stride * (n - 1) + reach


def describe(value: Any) -> str:
    """A bounded description; of a tensor without its contents, which would be read back."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a {kind} of {str(value.dtype).removeprefix('torch.')}"
    try:
        return f"{kind} {value!r}"[:80]
    except Exception:  # a repr that raises, or an int with too many digits for one
        return kind


def _unreal(x: Tensor) -> bool:
    return x.is_meta or type(x).__name__ == "FakeTensor"


def _shape(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"

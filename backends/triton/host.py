"""What the bound kernels share on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from flashmla_hub.backends.triton.config import Combine
from flashmla_hub.device import DeviceInfo

LOG2E = 1.4426950408889634
VECTOR = 8  # elements of 16 bytes: the unit in which the kernels take strides
INVARIANT_COMBINE = Combine(1, 256, 16)  # one tile for all batches: it decides the bits
INVARIANT_SCRATCH = 256 << 20  # bytes; the batch goes in slices of at most so much scratch


def multiprocessors(device: DeviceInfo) -> int:
    """Multiprocessors of ``device``, asked of the runtime where the DeviceInfo does not say."""
    if device.multiprocessors:
        return device.multiprocessors
    if device.type == "cuda" and not device.simulated and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device.index).multi_processor_count)
    return 64


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the device of ``tensor`` current where it is not: Triton launches on the current."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def positive(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """An equal problem whose scale is above 0, as the kernels take it."""
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)


def resolved(tensor: Tensor) -> Tensor:
    """``tensor`` without torch's lazy negation, which a kernel that reads raw memory would miss."""
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def unit_of(tensor: Tensor, units: Sequence[int], dims: int = 3) -> int:
    """The first of ``units`` (elements) that divides the address and the strides of the leading
    ``dims`` dimensions, which then fit 31 bits; the last one takes any. A dimension of size 1 has
    no stride that matters."""
    address = tensor.data_ptr() // tensor.element_size()
    strides = [s for s, n in zip(tensor.stride()[:dims], tensor.shape, strict=False) if n > 1]
    for unit in units[:-1]:
        if address % unit == 0 and all(s % unit == 0 and s < unit << 31 for s in strides):
            return unit
    return units[-1]


def vectors(tensor: Tensor) -> bool:
    """Whether base and strides are whole 16-byte vectors, as the kernels store them."""
    unit = 16 // tensor.element_size()
    strides = tensor.stride()
    return (
        tensor.data_ptr() % 16 == 0
        and strides[-1] == 1
        and not tensor.is_neg()
        and not any(s % unit for s, n in zip(strides[:-1], tensor.shape, strict=False) if n > 1)
    )

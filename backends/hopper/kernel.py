"""What the bound kernels of every op share: launches, tensor maps, the forms of results."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

from .driver import Driver
from .launch import Arguments, Buffers, Kernels, Launcher
from .prepare import Form
from .runtime import TorchCuda
from .tensormap import Encoder, HostCache, TensorMap
from .tuned import Tuning
from .variants import Variant

_SCALE_MIN, _SCALE_MAX = 1e-30, 1e30


class HopperKernel(BoundKernel):
    """Immutable but for caches of host memory: the forms of calls, tensor maps and per-thread
    argument buffers."""

    def __init__(
        self,
        key: KernelKey,
        variant: Variant,
        kernels: Kernels,
        driver: Driver,
        runtime: TorchCuda,
        index: int,
        multiprocessors: int,
        tuning: Tuning,
    ) -> None:
        self.key = key
        self.kernels = kernels
        self._variant = variant
        self._multiprocessors = multiprocessors
        self._tuning = tuning
        self._runtime = runtime
        self._index = index
        self._encoder = Encoder(driver, variant.fp16)
        self._forms = HostCache(128)
        self._maps = HostCache(1024)
        self._launch = Launcher(driver, index)
        self._arguments = Arguments(driver, kernels)

    def _fire(self, buffers: Buffers, ctas: int, combine_ctas: int, stream: int) -> None:
        """The main kernel, and the combine kernel where something can have been split."""
        config = buffers.main_config
        config.gridDimX = ctas
        config.hStream = stream
        self._launch(config, self.kernels.main, buffers.main_list)
        if combine_ctas:
            config = buffers.combine_config
            config.gridDimX = combine_ctas
            config.hStream = stream
            self._launch(config, self.kernels.combine, buffers.combine_list)

    def _map(self, what: str, form: Form, address: int) -> TensorMap:
        name = (address, form)
        found: TensorMap | None = self._maps.get(name)
        if found is None:
            found = self._encoder.encode(what, address, form.dims, form.strides, form.box)
            self._maps.put(name, found)
        return found


def shape_only(dtype: torch.dtype, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What empty_like needs of a tensor: no memory. It is the quickest way to a new tensor (2.1 us
    on the host where new_empty takes 3.0)."""
    made = torch.empty(1, dtype=dtype, device=like.device).expand(shape)
    made.untyped_storage().resize_(0)
    return made


def as_they_are(q: Tensor, scale: float) -> bool:
    """Whether the kernel takes these. The hardware steps over q with real strides only, and the
    kernel's maximum needs a scale above 0."""
    return 0 not in q.stride() and _SCALE_MIN <= scale <= _SCALE_MAX


def usable(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """An exact equivalent that the kernel takes: the sign goes into q, and where the logits vanish
    whatever q is, q does."""
    if 0 in q.stride():
        return q.contiguous(), scale
    if abs(scale) > _SCALE_MAX:
        raise NotSupportedError("hopper", "softmax_scale", scale, f"at most {_SCALE_MAX:g}")
    return (-q, -scale) if scale <= -_SCALE_MIN else (torch.zeros_like(q), 1.0)


def strides_fit(out: Tensor) -> bool:
    """Whether the kernel's 16-byte stores can go to ``out`` itself."""
    *steps, last = out.stride()
    return last == 1 and not any(s % 8 for s in steps) and out.data_ptr() % 16 == 0

"""Compiling a kernel once and launching it with little on the host.

Triton's own ``fn[grid](...)`` binds, specialises and hashes some forty arguments on each call
(tens of microseconds). The kernels here are written to have one specialisation for each set of
constants, so the compiled kernel is kept and launched directly.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flashmla_hub.errors import NotSupportedError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Descriptor:
    """Stands for a TMA descriptor argument where a kernel is compiled without one."""

    dtype: torch.dtype
    block: tuple[int, int]

    def real(self) -> Any:
        from flashmla_hub.backends.triton.descriptors import gluon_descriptor

        rows, cols = self.block
        return gluon_descriptor(0, self.dtype, rows, cols, cols, self.block)


class Launcher:
    """One jitted function with its constants and compiler options, for one device.

    Thread-safe: two threads that compile at once get the same kernel. Holds no device memory
    apart from the loaded module.
    """

    def __init__(self, fn: Any, constants: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.fn = fn
        self.constants = dict(constants)
        self.options = dict(options)
        order = [name for name in fn.arg_names if name in self.constants]
        self._tail = tuple(self.constants[name] for name in order)
        self._lock = threading.Lock()
        self._kernel: Any = None

    @property
    def ready(self) -> bool:
        """Whether the kernel is compiled and loaded: only then may it be launched in a capture."""
        return self._kernel is not None

    def compile(self, *args: Any) -> None:
        """Compile for arguments like ``args`` (torch dtypes stand for tensors) and load it."""
        with self._lock:
            if self._kernel is None:
                args = tuple(a.real() if isinstance(a, Descriptor) else a for a in args)
                kernel = self.fn.warmup(*args, grid=(1, 1, 1), **self.constants, **self.options)
                if kernel is not None:
                    kernel.run  # noqa: B018 - loads the module now, not at the first launch
                self._kernel = kernel

    def __call__(self, grid: Grid, *args: Any) -> None:
        kernel = self._kernel
        if kernel is None:
            refuse_under_capture()
            self.compile(*args)
            kernel = self._kernel
            if kernel is None:  # Triton's interpreter compiles nothing
                self.fn[grid](*args, **self.constants)
                return
        # Addresses, not tensors: for those the launcher asks the driver about every pointer.
        plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
        kernel[grid](*plain, *self._tail)


def capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def refuse_under_capture() -> None:
    """Compiling or loading a module inside a graph capture would break the capture (C6.1)."""
    if capturing():
        raise NotSupportedError(
            "triton", "first use of a kernel", "during graph capture",
            "call once with this shape, or warmup(key), before the capture",
        )  # fmt: skip

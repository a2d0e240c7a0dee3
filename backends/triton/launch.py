"""Compiling a kernel once and launching it with little on the host.

Triton's own ``fn[grid](...)`` binds, specialises and hashes some forty arguments on each call
(tens of microseconds). The kernels here are written to have one specialisation for each set of
constants, so the compiled kernel is kept and launched directly, without the metadata that only
launch hooks read; with such hooks (a profiler's) it goes through Triton.
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


@dataclass(frozen=True)
class Unaligned:
    """Stands for a tensor of ``dtype`` at any address, where a kernel is compiled without one."""

    dtype: torch.dtype

    def data_ptr(self) -> int:
        return 1


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
        self._pointers: tuple[int, ...] = ()
        self._device = 0
        self._stream_of: Any = None
        self._runtime: Any = None

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
                    from triton import knobs
                    from triton.runtime import driver

                    kernel.run  # noqa: B018 - loads the module now, not at the first launch
                    memory = (torch.Tensor, torch.dtype, Unaligned)
                    self._pointers = tuple(i for i, a in enumerate(args) if isinstance(a, memory))
                    self._device = driver.active.get_current_device()
                    self._stream_of = driver.active.get_current_stream
                    self._runtime = knobs.runtime
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
        plain = [*args, *self._tail]
        for i in self._pointers:
            plain[i] = plain[i].data_ptr()
        if _watched(self._runtime):
            kernel[grid](*plain)
            return
        kernel.run(
            *grid, self._stream_of(self._device), kernel.function, kernel.packed_metadata,
            None, None, None, *plain,
        )  # fmt: skip


def _watched(runtime: Any) -> bool:
    """Whether somebody wants to see launches: a hook is a chain of calls, a function or None."""
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def refuse_under_capture() -> None:
    """Compiling or loading a module inside a graph capture would break the capture (C6.1)."""
    if capturing():
        raise NotSupportedError(
            "triton", "first use of a kernel", "during graph capture",
            "call once with this shape, or warmup(key), before the capture",
        )  # fmt: skip

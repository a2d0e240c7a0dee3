"""Launching: per-thread argument buffers, and the kernels of one variant on one device."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

from .build import Origin
from .driver import CudaError, Driver
from .geometry import LIST_POINTERS, LISTS_OFFSET, PARAMS_BYTES, POINTERS, QUANTISED_PARAMS

MAIN_THREADS = 384
COMBINE_THREADS = 512


@dataclass(frozen=True)
class Kernels:
    """The functions of one variant, loaded on one device."""

    main: Any
    combine: Any
    main_shared: int  # bytes of dynamic shared memory
    maps: int  # tensor maps that ``main`` takes before its structure
    origins: tuple[Origin, Origin]


class Buffers:
    """What the driver reads during a launch."""

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.params = ctypes.create_string_buffer(PARAMS_BYTES)
        self.pack = partial(POINTERS.pack_into, self.params, 0)
        self.pack_lists = partial(LIST_POINTERS.pack_into, self.params, LISTS_OFFSET)
        self.list_tail = memoryview(self.params).cast("B")[LISTS_OFFSET + LIST_POINTERS.size :]
        self.tail = memoryview(self.params).cast("B")[POINTERS.size : LISTS_OFFSET]
        address = ctypes.addressof(self.params)
        maps = [None] * kernels.maps
        quantised = ctypes.create_string_buffer(QUANTISED_PARAMS.size)
        self.pack_quantised = partial(QUANTISED_PARAMS.pack_into, quantised, 0)
        # A kernel that takes no second structure does not look at its address.
        structures = (address, ctypes.addressof(quantised))
        self.main_pointers = (ctypes.c_void_p * (kernels.maps + 2))(*maps, *structures)
        self.main_list = ctypes.addressof(self.main_pointers)
        self.combine_pointers = (ctypes.c_void_p * 1)(address)
        self.combine_list = ctypes.addressof(self.combine_pointers)
        self.main_config = driver.launch_config(MAIN_THREADS, kernels.main_shared, True)
        self.combine_config = driver.launch_config(COMBINE_THREADS, 0, True)


class Arguments(threading.local):
    """``buffers``, one set for each thread: the driver reads them while the GIL is released."""

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.buffers = Buffers(driver, kernels)


class Launcher:
    """Issues launches on a device; puts the device's context right where a thread lacks one."""

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver = driver
        self._index = index
        self._launch = driver.launch
        self._success = driver.success

    def __call__(self, config: Any, function: Any, pointers: int) -> None:
        error = self._launch(config, function, pointers, 0)[0]
        if error is self._success or error == self._success:
            return
        failure = self._driver.error("cuLaunchKernelEx", error)
        if failure.code not in ("CUDA_ERROR_INVALID_CONTEXT", "CUDA_ERROR_CONTEXT_IS_DESTROYED"):
            raise failure
        # A thread that has made no runtime call yet has no current context.
        self._driver.bind_primary_context(self._index)
        error = self._launch(config, function, pointers, 0)[0]
        if error != self._success:
            raise CudaError("cuLaunchKernelEx", getattr(error, "name", str(error)), int(error))

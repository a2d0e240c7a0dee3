"""The CUDA driver through cuda-bindings: errors as exceptions, cubins in, functions out."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

DRIVER_LIBRARY = "libcuda.so.1"
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

# What the driver answers for a cubin that it will not run: another arch, newer than the driver,
# damaged, or built with an ABI it does not know.
_REFUSALS = (
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_INVALID_SOURCE",
    "CUDA_ERROR_NOT_FOUND",
)


class CudaError(RuntimeError):
    """The driver answered an error; ``code`` is its name (``CUDA_ERROR_...``)."""

    def __init__(self, call: str, code: str, number: int) -> None:
        self.call, self.code, self.number = call, code, number
        super().__init__(f"{call} failed with {code} ({number})")


class CubinRefused(CudaError):
    """The driver will not load this cubin; another one may do."""


class Driver:
    """The calls the backend makes; raw ones (``launch``) where each microsecond counts."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.api: Any = driver
        self.success = driver.CUresult.CUDA_SUCCESS
        self.launch = driver.cuLaunchKernelEx
        self._call("cuInit", 0)

    def _call(self, name: str, *args: Any) -> Any:
        error, *values = getattr(self.api, name)(*args)
        if error != self.success:
            raise self.error(name, error)
        return values[0] if values else None

    def error(self, name: str, error: Any) -> CudaError:
        code = getattr(error, "name", str(error))
        refused = name.startswith("cuModule") and code in _REFUSALS
        return (CubinRefused if refused else CudaError)(name, code, int(error))

    def bind_primary_context(self, index: int) -> None:
        """Make the device's primary context, the one torch uses, current in this thread."""
        device = self._call("cuDeviceGet", index)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", device))

    def load(self, cubin: bytes) -> Any:
        """A module from ``cubin`` in the current context; CubinRefused where it cannot run."""
        return self._call("cuModuleLoadData", cubin)

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        """An entry point that may be launched with ``shared_bytes`` of dynamic shared memory."""
        function = self._call("cuModuleGetFunction", module, name.encode())
        if shared_bytes > 48 * 1024:  # the limit without asking
            attribute = self.api.CUfunction_attribute(MAX_DYNAMIC_SHARED)
            self._call("cuFuncSetAttribute", function, attribute, shared_bytes)
        return function

    def launch_config(self, block: int, shared_bytes: int, dependent: bool) -> Any:
        """A config with the parts that no call changes; set gridDim* and hStream before use.

        ``dependent`` lets the kernel start while its predecessor in the stream drains
        (programmatic dependent launch): it must wait by itself before reading any input.
        """
        api = self.api
        config = api.CUlaunchConfig()
        config.gridDimX = config.gridDimY = config.gridDimZ = 1
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared_bytes
        if dependent:
            value = api.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            attribute = api.CUlaunchAttribute()
            attribute.id = (
                api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            )
            attribute.value = value
            config.attrs = [attribute]
            config.numAttrs = 1
        return config


@cache
def load_driver() -> Driver:
    """The process's driver; a failure is not remembered."""
    return Driver()


def driver_version() -> tuple[int, int] | None:
    """CUDA version of the installed driver, None where there is none. Initialises nothing and
    imports nothing: one call into libcuda."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10

"""Tensor maps (CUtensorMap), encoded on the host and cached by address and shape.

A map is a value: a stale entry cannot exist, for the key holds all that was encoded. The cache
holds host memory only.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from flashmla_hub.errors import NotSupportedError

from .driver import DRIVER_LIBRARY, Driver

_SIZE, _ALIGNMENT = 128, 64
# Values of cuda.h's CUtensorMap... enumerations.
_FLOAT16, _BFLOAT16 = 6, 9
_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_128B, _FILL_ZEROS = 0, 3, 2, 0
_UNIT_STRIDE = 128  # what a dimension of size 1 gets: never used, must be a multiple of 16


class TensorMap:
    """128 bytes at an aligned ``address``, kept alive by this object."""

    __slots__ = ("_buffer", "address")

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_SIZE + _ALIGNMENT)
        start = ctypes.addressof(self._buffer)
        self.address = -(-start // _ALIGNMENT) * _ALIGNMENT


class Encoder:
    """Encodes 16-bit tensors with a 128-byte swizzle, zeros outside.

    Through ctypes: the driver wants the map at a 64-byte aligned address, which the object that
    cuda-bindings would allocate for it is not.
    """

    def __init__(self, driver: Driver, fp16: bool) -> None:
        self._driver = driver
        self._type = _FLOAT16 if fp16 else _BFLOAT16
        encode = ctypes.CDLL(DRIVER_LIBRARY).cuTensorMapEncodeTiled
        encode.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
            *[ctypes.c_void_p] * 4, *[ctypes.c_int] * 4,
        ]  # fmt: skip
        self._encode = encode

    def encode(
        self,
        what: str,
        address: int,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
    ) -> TensorMap:
        """The map of ``dims`` elements (innermost first) with ``strides`` in bytes (of all but
        the innermost) and a ``box``.

        Raises:
            NotSupportedError: the hardware cannot express these strides (0, or 2^40 and more).
        """
        usable = [s if n > 1 else _UNIT_STRIDE for s, n in zip(strides, dims[1:], strict=True)]
        if any(not 0 < s < 2**40 or s % 16 for s in usable):
            raise NotSupportedError(
                "hopper", f"byte strides of {what}", tuple(usable), "multiples of 16 in 16..2^40"
            )
        rank = len(dims)
        tensor_map = TensorMap()
        error = self._encode(
            tensor_map.address, self._type, rank, address,
            (ctypes.c_uint64 * rank)(*dims), (ctypes.c_uint64 * (rank - 1))(*usable),
            (ctypes.c_uint32 * rank)(*box), (ctypes.c_uint32 * rank)(*[1] * rank),
            _INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_128B, _FILL_ZEROS,
        )  # fmt: skip
        if error:
            code = self._driver.api.CUresult(error)
            raise self._driver.error(f"cuTensorMapEncodeTiled for {what}", code)
        return tensor_map


class HostCache:
    """A bounded table of immutable values in host memory; oldest out first. Reads take no lock.

    What is evicted lives on as long as a launch in another thread holds it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: dict[Any, Any] = {}
        self._lock = threading.Lock()
        self.get = self._items.get

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            while len(self._items) >= self._capacity:
                del self._items[next(iter(self._items))]
            self._items[key] = value

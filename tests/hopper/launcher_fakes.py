"""A pytest plugin for launcher_*.py: requests on a process whose libcuda.so.1 is fake_driver.c."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from params_layout import MlaParams

from flashmla_hub import config
from flashmla_hub.backends.hopper.bound import DenseKernel
from flashmla_hub.backends.hopper.build import Builder
from flashmla_hub.backends.hopper.compilers import Compiled
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.backends.hopper.store import CubinStore
from flashmla_hub.call import DenseDecode
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

SMS = 132
BF16 = torch.bfloat16


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("attr_count", ctypes.c_int),
        ("attr_id", ctypes.c_int),
        ("attr_value", ctypes.c_int),
        ("params", (ctypes.c_char * 512) * 8),
    )


class FakeRuntime:
    """torch.cuda as the launcher sees it, on a machine with two devices."""

    def __init__(self) -> None:
        self.current, self.handle, self.guarded = 0, 0x77, []
        self.is_capturing = False
        self.memory: dict[int, torch.Tensor] = {}

    def allocate(self, size: int, stream: int) -> int:
        made = torch.empty(size, dtype=torch.uint8)
        self.memory[made.data_ptr()] = made
        return made.data_ptr()

    def free(self, address: int) -> None:
        del self.memory[address]

    def current_device(self) -> int:
        return self.current

    def stream(self, index: int) -> int:
        return self.handle + index

    @contextlib.contextmanager
    def guard(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        self.guarded.append(index)
        yield
        self.current = before

    def capturing(self) -> bool:
        return self.is_capturing

    def multiprocessors(self, index: int) -> int:
        return SMS


class FakeCompiler:
    name = "nvrtc"
    fingerprint = "fake 1"
    spills = ""

    def compile(self, unit: Any, root: Path) -> Compiled:
        return Compiled(b"cubin of " + unit.name.encode(), "")


@pytest.fixture
def driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_launch.restype = ctypes.POINTER(Launch)
    library.fake_kernel_name.argtypes = [ctypes.c_uint64]
    library.fake_kernel_name.restype = ctypes.c_char_p
    library.fake_reset()
    return library


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[HopperBackend]:
    def make(folder: Path) -> Builder:
        return Builder(CubinStore(folder), tmp_path / "aot", find=lambda: ([FakeCompiler()], []))

    with config.override(cache_dir=tmp_path):
        yield HopperBackend(FakeRuntime(), make)  # type: ignore[arg-type]


def bind(backend: HopperBackend, index: int = 0, **facts: Any) -> DenseKernel:
    device = DeviceInfo("nvidia", "sm_90", "cuda", index, multiprocessors=SMS)
    kernel = backend.bind(KernelKey(**facts), device)
    assert isinstance(kernel, DenseKernel)
    return kernel


class Call:
    """Tensors of a request, and the two launches that it made."""

    def __init__(self, driver: ctypes.CDLL, kernel: DenseKernel, batch: int, **tensors: Any):
        key = kernel.key
        dtype = BF16 if key.dtype == "bfloat16" else torch.float16
        self.key, self.driver = key, driver
        shape = (10, key.page_block_size, key.h_kv, key.d_qk)
        self.q = torch.zeros(batch, key.s_q, key.h_q, key.d_qk, dtype=dtype)
        self.k_cache = torch.zeros(shape, dtype=dtype)
        self.table = torch.zeros(batch, 7, dtype=torch.int32)
        self.lens = torch.zeros(batch, dtype=torch.int32)
        self.scale = 0.25
        self.out: Any = None
        self.lse: Any = None
        vars(self).update(tensors)
        self.kernel = kernel

    def run(self) -> list[Launch]:
        driver = self.driver
        driver.fake_reset()
        decode_sizes, size = (128, 128, 128), ctypes.sizeof(MlaParams)
        for i, n in enumerate((*decode_sizes, size)):
            driver.fake_param_size(i, n)
        driver.fake_param_size(4, 0)
        self.result = self.kernel.run(self.value())
        copies = []
        for i in range(driver.fake_launches()):
            copies.append(Launch.from_buffer_copy(driver.fake_launch(i).contents))
        return copies

    def value(self) -> DenseDecode:
        return DenseDecode(
            self.q, self.k_cache, self.table, self.lens, self.scale, self.out, self.lse
        )

    def name(self, launch: Launch) -> str:
        return self.driver.fake_kernel_name(launch.function).decode()


def params(launch: Launch) -> MlaParams:
    return MlaParams.from_buffer_copy(bytes(launch.params[3]))


def tensor_map(launch: Launch, index: int) -> dict[str, Any]:
    """What fake_driver.c wrote of an encoded map."""
    raw = bytes(launch.params[index])
    address, packed = struct.unpack_from("=QQ", raw)
    rank = packed >> 8 & 0xFF
    return {
        "address": address,
        "type": packed & 0xFF,
        "swizzle": packed >> 16 & 0xFF,
        "dims": struct.unpack_from(f"={rank}Q", raw, 16),
        "strides": struct.unpack_from(f"={rank - 1}Q", raw, 56),
        "box": struct.unpack_from(f"={rank}I", raw, 88),
    }


# fake_driver.c copies four arguments of every launch; the combine kernel has one, whose address
# is followed by nothing of ours. So the launcher is asked for both lists by one buffer.
@pytest.fixture(autouse=True)
def room_behind_the_combine_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashmla_hub.backends.hopper import launch

    original = launch.Buffers.__init__

    def roomy(self: Any, *args: Any) -> None:
        original(self, *args)
        address = self.combine_pointers[0]
        self.combine_pointers = (ctypes.c_void_p * 4)(address, address, address, address)
        self.combine_list = ctypes.addressof(self.combine_pointers)

    monkeypatch.setattr(launch.Buffers, "__init__", roomy)

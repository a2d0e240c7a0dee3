"""Run by test_hopper_launcher.py in a process whose libcuda.so.1 is fake_driver.c."""

from __future__ import annotations

import contextlib
import ctypes
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from params_layout import DenseDecodeParams

from flashmla_hub import config
from flashmla_hub.backends.hopper.bound import DenseDecode
from flashmla_hub.backends.hopper.build import Builder
from flashmla_hub.backends.hopper.compilers import Compiled
from flashmla_hub.backends.hopper.driver import CudaError
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.backends.hopper.store import CubinStore
from flashmla_hub.backends.hopper.tensormap import HostCache
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
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


def bind(backend: HopperBackend, index: int = 0, **facts: Any) -> DenseDecode:
    device = DeviceInfo("nvidia", "sm_90", "cuda", index, multiprocessors=SMS)
    kernel = backend.bind(KernelKey(**facts), device)
    assert isinstance(kernel, DenseDecode)
    return kernel


class Call:
    """Tensors of a request, and the two launches that it made."""

    def __init__(self, driver: ctypes.CDLL, kernel: DenseDecode, batch: int, **tensors: Any):
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
        decode_sizes, size = (128, 128, 128), ctypes.sizeof(DenseDecodeParams)
        for i, n in enumerate((*decode_sizes, size)):
            driver.fake_param_size(i, n)
        driver.fake_param_size(4, 0)
        self.result = self.kernel.run(
            self.q, self.k_cache, self.table, self.lens, self.scale, self.out, self.lse, None
        )
        copies = []
        for i in range(driver.fake_launches()):
            copies.append(Launch.from_buffer_copy(driver.fake_launch(i).contents))
        return copies

    def name(self, launch: Launch) -> str:
        return self.driver.fake_kernel_name(launch.function).decode()


def params(launch: Launch) -> DenseDecodeParams:
    return DenseDecodeParams.from_buffer_copy(bytes(launch.params[3]))


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

    original = launch.Arguments.__init__

    def roomy(self: Any, *args: Any) -> None:
        original(self, *args)
        address = self.combine_pointers[0]
        self.combine_pointers = (ctypes.c_void_p * 4)(address, address, address, address)
        self.combine_list = ctypes.addressof(self.combine_pointers)

    monkeypatch.setattr(launch.Arguments, "__init__", roomy)


def test_the_base_request(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend), batch=5)
    decode, combine = call.run()
    assert (call.name(decode), call.name(combine)) == ("fmh_dense_decode", "fmh_dense_combine")
    assert list(decode.grid) == [132, 1, 1]  # 66 parts of 2 tiles
    assert list(combine.grid) == [4 * SMS, 1, 1]
    assert (list(decode.block), list(combine.block)) == ([384, 1, 1], [256, 1, 1])
    assert (decode.shared, combine.shared) == (231744, 0)
    for launch in (decode, combine):
        assert launch.stream == 0x77
        assert (launch.attr_count, launch.attr_id, launch.attr_value) == (1, 6, 1)
    p = params(decode)
    out, lse = call.result
    assert (out.shape, out.dtype) == ((5, 1, 128, 512), BF16)
    assert (lse.shape, lse.dtype) == ((5, 128, 1), torch.float32)
    assert p.k_cache == call.k_cache.data_ptr()
    assert p.block_table == call.table.data_ptr()
    assert p.cache_seqlens == call.lens.data_ptr()
    assert (p.out, p.lse) == (out.data_ptr(), lse.data_ptr())
    assert p.partial_ml - p.partial_out == 2 * 66 * 128 * 512 * 4
    assert p.part_info - p.partial_ml == 2 * 66 * 128 * 8
    assert p.block_table_stride == 7
    assert (p.k_stride_page, p.k_stride_token) == (64 * 576, 576)
    assert (p.out_stride_batch, p.out_stride_token, p.out_stride_head) == (65536, 65536, 512)
    assert (p.lse_stride_batch, p.lse_stride_head, p.lse_stride_token) == (128, 1, 1)
    assert (p.batch, p.s_q, p.group, p.rows) == (5, 1, 128, 128)
    assert (p.tile_rows, p.tiles, p.lanes, p.parts) == (64, 2, 2, 66)
    assert (p.page_block_size, p.capacity, p.causal) == (64, 7 * 64, 0)
    assert (p.q_heads, p.q_boxes, p.q_box_bytes, p.kv_head_tiles) == (128, 1, 73728, 0)
    assert (p.request_cost, p.min_part_blocks, p.prefetch) == (4, 2, 1)
    assert p.scale_log2 == pytest.approx(0.25 * math.log2(math.e))
    assert tensor_map(decode, 0) == {
        "address": call.q.data_ptr(),
        "type": 9,
        "swizzle": 3,
        "dims": (64, 128, 1, 9, 5),
        "strides": (1152, 128, 128, 128 * 1152),
        "box": (64, 64, 1, 9, 1),
    }
    k = tensor_map(decode, 1)
    assert k["address"] == call.k_cache.data_ptr()
    assert k["dims"] == (64, 64, 9, 10)
    assert k["strides"] == (1152, 128, 64 * 1152)
    assert (k["box"], tensor_map(decode, 2)["box"]) == ((64, 64, 4, 1), (64, 64, 5, 1))


def test_a_strided_pool_and_grouped_rows(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    kernel = bind(backend, s_q=3, h_q=24, h_kv=2, causal=True, kv_strides="page_strided")
    pool = torch.zeros(10, 80, 2, 576, dtype=BF16)
    wide = torch.zeros(4, 3, 30, 576, dtype=BF16)
    call = Call(driver, kernel, 4, k_cache=pool[:, :64], q=wide[:, :, :24])
    decode, _ = call.run()
    p = params(decode)
    assert (p.group, p.rows, p.tile_rows, p.tiles, p.lanes, p.parts) == (12, 36, 36, 1, 2, 66)
    assert (p.q_heads, p.q_boxes, p.q_box_bytes) == (12, 9, 64 * 36 * 2)
    assert (p.causal, p.kv_head_tiles, p.prefetch) == (1, 9, 0)
    q, k = tensor_map(decode, 0), tensor_map(decode, 1)
    assert q["dims"] == (64, 24, 3, 9, 4)
    assert q["strides"] == (1152, 30 * 1152, 128, 90 * 1152)
    assert q["box"] == (64, 12, 3, 1, 1)
    assert k["dims"] == (64, 64, 18, 10)
    assert k["strides"] == (2304, 128, 80 * 2304)


def test_pages_that_boxes_cannot_cover_are_gathered(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, page_block_size=16, h_q=16, dtype="float16", d_qk=512)
    call = Call(driver, kernel, 2)
    decode, _ = call.run()
    assert driver.fake_encodes() == 1, "no map of K"
    assert decode.shared == 215360
    p = params(decode)
    assert (p.prefetch, p.page_block_size, p.capacity) == (0, 16, 112)
    assert (p.k_stride_page, p.k_stride_token, p.k_stride_head) == (16 * 512, 512, 512)
    assert tensor_map(decode, 0)["type"] == 6
    assert bytes(decode.params[0][:128]) == bytes(decode.params[1][:128])


def test_free_token_strides_with_several_kv_heads_are_gathered(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, h_q=4, h_kv=2, kv_strides="token_strided")
    pool = torch.zeros(10, 64, 2, 600, dtype=BF16)
    Call(driver, kernel, 1, k_cache=pool[..., :576]).run()
    assert driver.fake_encodes() == 1


def test_the_second_call_encodes_nothing_and_follows_new_addresses(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 3)
    call.run()
    first_lens = call.lens
    call.lens = torch.zeros(3, dtype=torch.int32)
    decode, _ = call.run()
    assert driver.fake_encodes() == 0
    assert params(decode).cache_seqlens == call.lens.data_ptr() != first_lens.data_ptr()
    call.q = torch.zeros_like(call.q)
    decode, _ = call.run()
    assert driver.fake_encodes() == 1
    assert tensor_map(decode, 0)["address"] == call.q.data_ptr()


def test_a_batch_past_the_schedule_is_launched_in_slices(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend, h_q=1), 4096 + 10)
    first, _, second, _ = call.run()
    a, b = params(first), params(second)
    assert (a.batch, b.batch) == (4096, 10)
    assert b.block_table - a.block_table == 4096 * 7 * 4
    assert b.cache_seqlens - a.cache_seqlens == 4096 * 4
    assert b.out - a.out == 4096 * 512 * 2
    assert b.lse - a.lse == 4096 * 4
    assert tensor_map(second, 0)["address"] == call.q.data_ptr() + 4096 * 1152
    assert tensor_map(second, 0)["dims"][-1] == 10


def test_batch_invariant_scratch_is_bounded_by_slices(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, batch_invariant=True)
    call = Call(driver, kernel, 200, table=torch.zeros(200, 1024, dtype=torch.int32))
    launches = call.run()
    decodes = [params(launch) for launch in launches[::2]]
    assert sum(p.batch for p in decodes) == 200
    assert len(decodes) > 1
    for p in decodes:
        assert p.max_chunks == 32
        used = p.part_info + p.parts * 8 - p.partial_out
        assert p.batch * 32 * 128 * 2056 <= used <= (256 << 20) + 65536


def test_batch_invariant_rows_that_fit_one_chunk_need_no_combine(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend, batch_invariant=True), 2)
    assert [call.name(launch) for launch in call.run()] == ["fmh_dense_decode"]


def test_one_part_needs_no_combine(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend, h_q=128, s_q=16), 1)
    (decode, *_) = launches = call.run()
    assert params(decode).parts == 4
    assert len(launches) == 2
    call = Call(driver, bind(backend, h_q=64 * 70), 1)
    launches = call.run()
    assert [params(launch).parts for launch in launches] == [1]
    assert list(launches[0].grid) == [70, 1, 1]


def test_no_pages_and_no_table(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend), 2, k_cache=torch.zeros(0, 64, 1, 576, dtype=BF16))
    decode, *_ = call.run()
    assert params(decode).capacity == 0
    assert driver.fake_encodes() == 1
    call = Call(driver, bind(backend), 2, table=torch.zeros(2, 0, dtype=torch.int32))
    decode, *_ = call.run()
    assert params(decode).capacity == 0


def test_results_are_written_where_the_caller_says(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, s_q=2, h_q=16)
    out = torch.zeros(3, 2, 32, 512, dtype=BF16)[:, :, :16]
    lse = torch.zeros(3, 2, 16).transpose(1, 2)
    call = Call(driver, kernel, 3, out=out, lse=lse)
    decode, *_ = call.run()
    p = params(decode)
    assert call.result[0] is out
    assert call.result[1] is lse
    assert (p.out, p.lse) == (out.data_ptr(), lse.data_ptr())
    assert (p.out_stride_batch, p.out_stride_token) == (2 * 32 * 512, 32 * 512)
    assert (p.lse_stride_batch, p.lse_stride_head, p.lse_stride_token) == (32, 1, 16)


@pytest.mark.parametrize("odd", ["address", "head stride", "last stride"])
def test_an_out_that_16_byte_stores_cannot_reach_is_copied_to(
    odd: str, driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    whole = torch.zeros(3 * 16 * 1100 + 8, dtype=BF16)
    strides = {"address": (16 * 512, 512, 512, 1), "head stride": (16 * 513, 513, 513, 1)}
    strides["last stride"] = (16 * 1024, 1024, 1024, 2)
    offset = 1 if odd == "address" else 0
    out = whole.as_strided((3, 1, 16, 512), strides[odd], offset)
    call = Call(driver, bind(backend, h_q=16), 3, out=out)
    decode, *_ = call.run()
    assert call.result[0] is out
    assert params(decode).out != out.data_ptr()
    assert params(decode).out_stride_head == 512


def test_a_broadcast_q_is_copied(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    q = torch.zeros(1, 1, 16, 576, dtype=BF16).expand(4, 1, 16, 576)
    call = Call(driver, bind(backend, h_q=16, q_strides="token_strided"), 4, q=q)
    decode, *_ = call.run()
    assert tensor_map(decode, 0)["strides"][-1] == 16 * 1152
    assert tensor_map(decode, 0)["address"] != q.data_ptr()


@pytest.mark.parametrize(("scale", "kept"), [(-0.5, 0.5), (0.0, 1.0), (1e-40, 1.0), (3.0, 3.0)])
def test_scales_that_are_not_positive_go_into_q(
    scale: float, kept: float, driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 2, scale=scale)
    decode, *_ = call.run()
    assert params(decode).scale_log2 == pytest.approx(kept * math.log2(math.e))
    same_q = tensor_map(decode, 0)["address"] == call.q.data_ptr()
    assert same_q == (scale == kept)


def test_a_scale_past_float32_is_refused(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend), 2, scale=1e31)
    with pytest.raises(NotSupportedError, match="softmax_scale"):
        call.run()
    assert driver.fake_launches() == 0


def test_strides_the_hardware_cannot_express_are_refused_before_a_launch(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, kv_strides="page_strided")
    pages = torch.zeros(1, 64, 1, 576, dtype=BF16).expand(10, 64, 1, 576)
    call = Call(driver, kernel, 2, k_cache=pages)
    with pytest.raises(NotSupportedError, match="byte strides of k_cache"):
        call.run()
    assert driver.fake_launches() == 0


def test_another_device_is_made_current_for_the_call(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    kernel = bind(backend, index=1)
    runtime = kernel._runtime
    runtime.guarded.clear()
    call = Call(driver, kernel, 2)
    decode, *_ = call.run()
    assert runtime.guarded == [1]
    assert runtime.current == 0
    assert decode.stream == 0x78


def test_a_thread_without_a_context_gets_the_devices_own(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 2)
    call.run()
    driver.fake_reset()
    driver.fake_fail(b"cuLaunchKernelEx", 201, 1)
    call.kernel.run(call.q, call.k_cache, call.table, call.lens, 0.25, None, None, None)
    assert driver.fake_launches() == 2


def test_a_failing_launch_is_an_exception_that_names_it(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 2)
    driver.fake_fail(b"cuLaunchKernelEx", 719, 1)
    with pytest.raises(CudaError, match="cuLaunchKernelEx failed with CUDA_ERROR_LAUNCH_FAILED"):
        call.kernel.run(call.q, call.k_cache, call.table, call.lens, 0.25, None, None, None)


def test_a_cubin_the_driver_refuses_leaves_a_note(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    bind(backend)
    other = HopperBackend(FakeRuntime(), backend._make_builder)  # type: ignore[arg-type]
    driver.fake_fail(b"cuModuleLoadData", 209, 1)
    kernel = bind(other)
    device = DeviceInfo("nvidia", "sm_90", "cuda")
    assert [o.source for o in kernel.kernels.origins] == ["nvrtc", "disk"]
    (note,) = other.notes(device)
    assert "disk cubin" in note
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in note


def test_when_the_driver_refuses_every_cubin_bind_refuses(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    driver.fake_fail(b"cuModuleLoadData", 209, 9)
    with pytest.raises(NotSupportedError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        bind(backend)


def test_variants_are_loaded_once_a_device(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    bind(backend)
    bind(backend, h_q=16)
    bind(backend, s_q=2, causal=True)
    assert driver.fake_loads() == 2
    bind(backend, index=1)
    assert driver.fake_loads() == 4
    bind(backend, dtype="float16")
    assert driver.fake_loads() == 6


def test_threads_have_their_own_arguments(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    kernel = bind(backend, h_q=16)
    calls = [Call(driver, kernel, batch) for batch in (1, 2, 3, 4)]
    driver.fake_reset()
    for i, n in enumerate((128, 128, 128, ctypes.sizeof(DenseDecodeParams))):
        driver.fake_param_size(i, n)

    def work(call: Call) -> None:
        for _ in range(200):
            call.kernel.run(call.q, call.k_cache, call.table, call.lens, 0.25, None, None, None)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lens = {call.q.shape[0]: call.lens.data_ptr() for call in calls}
    seen = set()
    for i in range(driver.fake_launches()):
        launch = driver.fake_launch(i).contents
        if driver.fake_kernel_name(launch.function) == b"fmh_dense_decode":
            p = params(launch)
            assert p.cache_seqlens == lens[p.batch]
            assert tensor_map(launch, 0)["dims"][-1] == p.batch
            seen.add(p.batch)
    assert seen == {1, 2, 3, 4}


def test_host_caches_are_bounded() -> None:
    cache = HostCache(8)
    for i in range(100):
        cache.put(i, i)
    assert len(cache) == 8
    assert (cache.get(99), cache.get(0)) == (99, None)

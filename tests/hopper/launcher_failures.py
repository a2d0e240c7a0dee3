"""Refusals, failing drivers, devices and threads under the launcher.

Run by test_hopper_launcher.py in a process whose libcuda.so.1 is fake_driver.c.
"""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch
from launcher_fakes import BF16, Call, FakeRuntime, bind, params, tensor_map
from params_layout import MlaParams

from flashmla_hub.backends.hopper.driver import CudaError
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.backends.hopper.tensormap import HostCache
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError


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
    call.kernel.run(call.value())
    assert driver.fake_launches() == 2


def test_a_failing_launch_is_an_exception_that_names_it(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 2)
    driver.fake_fail(b"cuLaunchKernelEx", 719, 1)
    with pytest.raises(CudaError, match="cuLaunchKernelEx failed with CUDA_ERROR_LAUNCH_FAILED"):
        call.kernel.run(call.value())
    assert backend._runtime.memory == {}, "the scratch is given back"  # type: ignore[union-attr]


def test_a_cubin_the_driver_refuses_leaves_a_note(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    bind(backend)
    other = HopperBackend(FakeRuntime(), backend._make_builder)  # type: ignore[arg-type]
    driver.fake_fail(b"cuModuleLoadData", 209, 1)
    kernel = bind(other)
    device = DeviceInfo("nvidia", "sm_90", "cuda")
    assert sorted(o.source for o in kernel.kernels.origins) == ["disk", "nvrtc"]
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
    for i, n in enumerate((128, 128, 128, ctypes.sizeof(MlaParams))):
        driver.fake_param_size(i, n)

    def work(call: Call) -> None:
        for _ in range(200):
            call.kernel.run(call.value())

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

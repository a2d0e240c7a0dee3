"""What is launched for which request.

Run by test_hopper_launcher.py in a process whose libcuda.so.1 is fake_driver.c.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
from launcher_fakes import BF16, SMS, Call, FakeRuntime, bind, params, tensor_map

import flashmla_hub
from flashmla_hub import testing
from flashmla_hub.backends.hopper import tuned
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.device import DeviceInfo


def test_the_base_request(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    wide = torch.zeros(5, 30, dtype=torch.int32)
    call = Call(driver, bind(backend), batch=5, table=wide)
    decode, combine = call.run()
    assert (call.name(decode), call.name(combine)) == ("fmh_dense_decode", "fmh_combine")
    assert list(decode.grid) == [132, 1, 1]  # 66 parts of 2 tiles
    assert list(combine.grid) == [2 * SMS, 1, 1]
    assert (list(decode.block), list(combine.block)) == ([384, 1, 1], [512, 1, 1])
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
    assert p.partial_stats - p.partial_out == 2 * 66 * 128 * 512 * 2
    assert p.part_info - p.partial_stats == 2 * 66 * 128 * 16
    assert p.block_table_stride == 30
    assert (p.k_stride_page, p.k_stride_token) == (64 * 576, 576)
    assert (p.out_stride_batch, p.out_stride_token, p.out_stride_head) == (65536, 65536, 512)
    assert (p.lse_stride_batch, p.lse_stride_head, p.lse_stride_token) == (128, 1, 1)
    assert (p.batch, p.s_q, p.group, p.rows) == (5, 1, 128, 128)
    assert (p.tile_rows, p.tiles, p.lanes, p.parts) == (64, 2, 2, 66)
    assert (p.page_block_size, p.capacity, p.causal) == (64, 30 * 64, 0)
    assert (p.q_heads, p.q_boxes, p.q_box_bytes, p.kv_head_tiles) == (128, 1, 73728, 0)
    setting = tuned.tuning(call.key, DeviceInfo("nvidia", "sm_90", "cuda"))
    said = (p.request_cost, p.min_part_blocks, p.prefetch, p.evict_first, p.evict_half)
    assert said == astuple(setting)
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
    assert (p.evict_first, p.evict_half) == (1700, 340)  # of two KV heads each
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
        used = p.part_info + p.parts * 4 - p.partial_out
        assert p.batch * 32 * 128 * 1040 <= used <= (256 << 20) + 65536


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
    (decode,) = launches
    assert params(decode).parts == 1
    assert list(decode.grid) == [70, 1, 1]
    assert params(decode).part_info == 0, "nobody reads it, and there is no scratch to hold it"


def test_requests_of_one_block_need_no_combine(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend, h_q=16), 4, table=torch.zeros(4, 1, dtype=torch.int32))
    (decode,) = call.run()
    assert (params(decode).parts, params(decode).part_info) == (132, 0)


def test_a_step_s_later_layers_launch_the_same(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    call = Call(driver, bind(backend), 3)
    first = call.run()
    again = call.kernel.repeat(call.q, call.k_cache, call.table, call.lens, call.scale)
    assert again is not None
    call.kernel = SimpleNamespace(run=lambda value: again(*value[:4]))  # type: ignore[assignment]
    second = call.run()
    assert [t.shape for t in call.result] == [(3, 1, 128, 512), (3, 128, 1)]
    moving = ("out", "lse", "partial_out", "partial_stats", "part_info")
    for before, after in zip(first, second, strict=True):
        assert list(before.grid) == list(after.grid)
    a, b = params(first[0]), params(second[0])
    for name, kind in a._fields_:
        x, y = (kind.from_buffer_copy(bytes(p)[getattr(type(p), name).offset :]) for p in (a, b))
        assert name in moving or bytes(x) == bytes(y), name


def test_what_must_be_rewritten_is_not_repeated(
    driver: ctypes.CDLL, backend: HopperBackend
) -> None:
    call = Call(driver, bind(backend), 3, scale=-1.0)
    assert call.kernel.repeat(call.q, call.k_cache, call.table, call.lens, -1.0) is None


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


def test_the_public_call_reaches_the_launches(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    """Through dispatch, metadata and rewrites; the stand-in driver leaves results unwritten."""

    class Simulated(HopperBackend):
        name = "simulated_hopper"
        runs_simulated = True

        def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
            return ()

    ours = Simulated(FakeRuntime(), backend._make_builder)  # type: ignore[arg-type]
    q = torch.zeros(3, 2, 16, 576, dtype=BF16)
    k_cache = torch.zeros(10, 64, 1, 576, dtype=BF16)
    table, lens = torch.zeros(3, 7, dtype=torch.int32), torch.ones(3, dtype=torch.int32)

    def call(q: torch.Tensor, meta: object) -> int:
        driver.fake_reset()
        out, lse = flashmla_hub.flash_mla_with_kvcache(
            q, k_cache, table, lens, 512, meta, None, causal=True, backend="simulated_hopper"
        )
        assert out.shape == (3, q.shape[1], 16, 512)
        assert lse.shape == (3, 16, q.shape[1])
        return driver.fake_launches()

    with testing.registered(ours), flashmla_hub.simulate_device("nvidia", "sm_90"):
        meta, _ = flashmla_hub.get_mla_metadata(lens, 32, 1)
        assert call(q, meta) == 2
        assert call(torch.zeros_like(q), meta) == 2
        assert call(q[:, :1].contiguous(), None) == 2
        assert call(torch.zeros(3, 17, 16, 576, dtype=BF16), None) == 2, "folded to 51 rows"

"""What is launched over quantised caches; run as launcher_cases.py."""

from __future__ import annotations

import ctypes

import pytest
import torch
from launcher_fakes import BF16, SMS
from params_layout import MlaParams, QuantisedParams

from flashmla_hub import kv_format
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.call import DenseDecode, SparseDecode
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

DEVICE = DeviceInfo("nvidia", "sm_90", "cuda", 0, multiprocessors=SMS)


@pytest.fixture(autouse=True)
def sizes(driver: ctypes.CDLL) -> None:
    """Two structures for the kernel, the first of them for the combine kernel too."""
    driver.fake_param_size(0, ctypes.sizeof(MlaParams))
    driver.fake_param_size(1, ctypes.sizeof(QuantisedParams))
    driver.fake_param_size(2, 0)


def launched(driver: ctypes.CDLL) -> tuple[MlaParams, QuantisedParams]:
    launch = driver.fake_launch(0).contents
    assert driver.fake_kernel_name(launch.function).decode() == "fmh_quantised"
    structures = zip((MlaParams, QuantisedParams), launch.params, strict=False)
    return tuple(kind.from_buffer_copy(bytes(raw)) for kind, raw in structures)


def test_dense_decode_counts_bytes(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    key = KernelKey(kv_format="v32", s_q=2, h_q=5, page_block_size=48, causal=True)
    kernel = backend.bind(key, DEVICE)
    assert kernel.kernels.main_shared == 223616  # ten rows: tiles of 16
    q = torch.zeros(3, 4, 5, 576, dtype=BF16)[:, ::2]
    cache = torch.zeros(7, 49, 1, 656, dtype=torch.uint8)[:, :48]
    table, lens = torch.zeros(3, 6).int(), torch.ones(3).int()
    out, _ = kernel.run(DenseDecode(q, cache, table, lens, 0.5, None, None))
    p, x = launched(driver)
    assert out.shape == (3, 2, 5, 512)
    assert (p.k_cache, p.block_table) == (cache.data_ptr(), table.data_ptr())
    assert (p.k_stride_page, p.k_stride_token, p.page_block_size) == (49 * 656, 656, 48)
    assert (p.rows, p.tile_rows, p.tiles, p.parts, p.causal) == (10, 10, 1, SMS, 1)
    assert (x.q, x.descale_q, x.descale_k) == (q.data_ptr(), 0, 0)
    assert (x.q_stride_batch, x.q_stride_token, x.q_stride_head) == (4 * 5 * 576, 2 * 5 * 576, 576)


def test_pages_of_model1_stay_pages(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    """A page's scales follow all of its values: slots are never equally spaced."""
    page = 72  # 584 bytes a token are then a multiple of 576 a page
    key = KernelKey(
        op="sparse_decode", kv_format="model1", h_q=128, d_qk=512, topk=128,
        page_block_size=page, extra_topk=64, extra_page_block_size=2,
    )  # fmt: skip
    kernel = backend.bind(key, DEVICE)
    q = torch.zeros(9, 1, 128, 512, dtype=BF16)
    cache = kv_format.quantize(torch.zeros(4, page, 1, 512, dtype=BF16), "model1")
    extra = kv_format.quantize(torch.zeros(6, 2, 1, 512, dtype=BF16), "model1")
    slots, more = torch.zeros(9, 1, 128).int(), torch.zeros(9, 1, 64).int()
    kernel.run(
        SparseDecode(
            q, cache, slots, 0.5, None, None,
            extra_k_cache=extra, extra_indices=more,
        )
    )  # fmt: skip
    p, x = launched(driver)
    lists = p.lists
    assert (lists.page_block_size_0, lists.page_block_size_1) == (page, 2)
    assert (lists.stride_page_0, lists.stride_page_1) == (page * 584, extra.stride(0))
    assert (lists.limit_0, lists.limit_1) == (4 * page, 12)
    assert (p.rows, p.tile_rows, p.tiles, p.capacity) == (128, 64, 2, 64 * 3)
    assert (x.q_stride_batch, x.q_stride_head) == (128 * 512, 512)

"""What is launched for sparse requests; run as launcher_cases.py."""

from __future__ import annotations

import ctypes

import pytest
import torch
from launcher_fakes import BF16, SMS
from params_layout import MlaParams

from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.call import SparseDecode, SparsePrefill
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

DEVICE = DeviceInfo("nvidia", "sm_90", "cuda", 0, multiprocessors=SMS)


@pytest.fixture(autouse=True)
def sizes(driver: ctypes.CDLL) -> None:
    """The structure is the kernel's second argument, the combine kernel's first."""
    driver.fake_param_size(0, 128)
    driver.fake_param_size(1, ctypes.sizeof(MlaParams))
    driver.fake_param_size(2, 0)


def launched(driver: ctypes.CDLL) -> list[tuple[str, MlaParams]]:
    found = []
    for i in range(driver.fake_launches()):
        launch = driver.fake_launch(i).contents
        raw = MlaParams.from_buffer_copy(bytes(launch.params[1]))
        found.append((driver.fake_kernel_name(launch.function).decode(), raw))
    return found


def test_decode_over_two_caches(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    key = KernelKey(
        op="sparse_decode", s_q=2, h_q=64, d_qk=512, topk=128, extra_topk=512,
        extra_page_block_size=2, attn_sink=True, topk_length=True, extra_topk_length=True,
    )  # fmt: skip
    kernel = backend.bind(key, DEVICE)
    q = torch.zeros(3, 2, 64, 512, dtype=BF16)
    cache, more = torch.zeros(9, 64, 1, 512, dtype=BF16), torch.zeros(7, 3, 1, 512, dtype=BF16)
    lists, others = torch.zeros(3, 2, 128).int(), torch.zeros(3, 2, 600).int()[..., :512]
    counts, other_counts, sink = torch.zeros(3).int(), torch.zeros(3).int(), torch.zeros(64)
    out = torch.zeros(3, 2, 128, 512, dtype=BF16)[:, :, 64:]
    got, lse = kernel.run(
        SparseDecode(
            q, cache, lists, 0.25, out, None, counts, sink, more[:, :2], others, other_counts
        )
    )
    assert got is out
    assert lse.shape == (3, 64, 2)
    (name, p), (combine, _) = launched(driver)
    assert (name, combine) == ("fmh_sparse", "fmh_combine")
    assert (p.out, p.lse) == (out.data_ptr(), lse.data_ptr())
    assert (p.out_stride_batch, p.out_stride_token) == (2 * 128 * 512, 128 * 512)
    assert (p.batch, p.s_q, p.rows, p.lanes, p.parts) == (6, 2, 64, 1, 132)
    assert p.capacity == 64 * (2 + 8)
    lists_of = p.lists
    assert (lists_of.slots_0, lists_of.slots_1) == (lists.data_ptr(), others.data_ptr())
    assert (lists_of.counts_0, lists_of.counts_1) == (counts.data_ptr(), other_counts.data_ptr())
    assert (lists_of.cache_0, lists_of.cache_1) == (cache.data_ptr(), more.data_ptr())
    assert (lists_of.attn_sink, lists_of.max_logits) == (sink.data_ptr(), 0)
    assert (lists_of.slots_stride_row_1, lists_of.slots_stride_token_1) == (1200, 600)
    assert (lists_of.stride_page_0, lists_of.stride_page_1) == (512, 3 * 512)
    assert (lists_of.limit_0, lists_of.limit_1, lists_of.dealt) == (9 * 64, 14, 0)


def test_prefill_deals_its_queries_out(driver: ctypes.CDLL, backend: HopperBackend) -> None:
    key = KernelKey(op="sparse_prefill", h_q=32, h_kv=2, page_block_size=1, topk=70)
    kernel = backend.bind(key, DEVICE)
    q, kv = torch.zeros(5000, 32, 576, dtype=BF16), torch.zeros(900, 2, 576, dtype=BF16)
    indices = torch.zeros(5000, 2, 70).int()
    out, tops, lse = kernel.run(SparsePrefill(q, kv, indices, 0.25))
    assert (out.shape, tops.shape, lse.shape) == ((5000, 32, 512), (5000, 32), (5000, 32))
    ((name, p),) = launched(driver)
    assert name == "fmh_sparse"
    assert (p.lists.max_logits, p.lse) == (tops.data_ptr(), lse.data_ptr())
    assert (p.lse_stride_batch, p.lse_stride_head) == (32, 1)
    assert (p.lists.slots_stride_row_0, p.lists.slots_stride_head_0) == (140, 70)
    assert (p.lists.stride_page_0, p.lists.stride_head_0, p.lists.limit_0) == (1152, 576, 900)
    assert (p.lists.counts_0, p.lists.attn_sink, p.lists.dealt, p.part_info) == (0, 0, 1, 0)

"""What the host works out for kernels over lists: how pages are divided by, what is dealt out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from params_layout import ListParams, MlaParams

from flashmla_hub.backends.hopper.geometry import LIST_POINTERS, POINTERS
from flashmla_hub.backends.hopper.prepare_lists import (
    NONE,
    Cache,
    ListTensors,
    PreparedLists,
    lse_strides,
    out_strides,
    prepare_lists,
)
from flashmla_hub.backends.hopper.tuned import Tuning
from flashmla_hub.request import KernelKey

D = 576


def cache(width: int, page: int = 64, pages: int = 100, gap: int = 0, **facts: object) -> Cache:
    strides = ((page + gap) * D, D, D)
    return Cache(pages, page, strides, width, (width, width, width), **{"counted": False, **facts})


def prepared(rows: int, s_q: int, *caches: Cache, **facts: object) -> PreparedLists:
    key = KernelKey(**{"op": "sparse_decode", "h_q": 128, "s_q": s_q, **facts})
    first, second = (*caches, NONE)[:2]
    stride = (s_q * key.h_q * D, key.h_q * D, D, 1)
    call = ListTensors(
        q_shape=(rows, s_q, key.h_q, D),
        q_stride=stride,
        caches=(first, second),
        out_stride=out_strides(s_q, key.h_q),
        lse_stride=lse_strides(s_q, key.h_q),
    )
    return prepare_lists(key, 132, Tuning(), call, 0.25)


def lists_of(found: PreparedLists, launch: int = 0) -> ListParams:
    return ListParams.from_buffer_copy(bytes(LIST_POINTERS.size) + found.slices[launch].list_tail)


def main_of(found: PreparedLists, launch: int = 0) -> MlaParams:
    tail = found.slices[launch].tail
    whole = bytes(POINTERS.size) + tail
    return MlaParams.from_buffer_copy(whole.ljust(MlaParams.lists.offset + 512, b"\0"))


@given(st.integers(2, 5000), st.integers(0, 2**31 - 1))
def test_the_division_by_a_page_size_is_exact(page: int, entry: int) -> None:
    p = lists_of(prepared(1, 1, cache(64, page, gap=1)))
    assert p.page_block_size_0 == page
    multiplier = p.page_multiplier_0 % 2**32
    bits = p.page_bits_0
    found = (entry * multiplier >> 32) >> (bits - 1) if multiplier else entry >> bits
    assert found == entry // page


def test_equally_spaced_slots_need_no_division() -> None:
    p = lists_of(prepared(1, 1, cache(64), cache(128, 2, gap=3)))
    assert (p.page_block_size_0, p.stride_page_0, p.page_bits_0) == (1, D, 0)
    assert (p.page_block_size_1, p.stride_page_1, p.stride_token_1) == (2, 5 * D, D)
    assert (p.width_0, p.width_1, p.limit_0, p.limit_1) == (64, 128, 6400, 200)


def test_a_cache_past_2_to_the_31_slots_takes_every_entry_that_is_not_negative() -> None:
    p = lists_of(prepared(1, 1, cache(64, pages=1 << 40)))
    assert p.limit_0 % 2**32 == 2**31


@pytest.mark.parametrize(
    ("rows", "counted", "dealt"),
    [(66, False, 1), (64, False, 1), (70, False, 0), (66, True, 0), (66 * 16, True, 1)],
)
def test_requests_that_divide_evenly_are_dealt_out(rows: int, counted: bool, dealt: int) -> None:
    found = prepared(rows, 1, cache(2048, counted=counted))
    assert main_of(found).parts == 66
    assert lists_of(found).dealt == dealt
    assert bool(found.slices[0].combine_ctas) == (not dealt)
    assert bool(found.slices[0].scratch) == bool(found.slices[0].part_info) == (not dealt)


def test_every_query_token_is_a_request() -> None:
    p = main_of(prepared(5, 3, cache(2048), cache(100)))
    assert (p.batch, p.s_q, p.group, p.rows, p.tile_rows, p.lanes) == (15, 3, 128, 128, 64, 2)
    assert p.capacity == (32 + 2) * 64


def test_a_batch_past_the_schedule_is_launched_in_slices() -> None:
    # too few for dealing where counts are unknown, at 600 KV lanes: one part each, so dealt
    found = prepared(70000, 1, cache(64))
    assert len(found.slices) == 1
    many = prepared((1 << 20) + 5, 1, cache(64))
    assert [s.start for s in many.slices] == [0, 1 << 20]
    assert main_of(many, 1).batch == 5


def test_batch_invariant_cuts_do_not_follow_the_batch() -> None:
    for rows in (1, 66, 5000):
        found = prepared(rows, 1, cache(16384), batch_invariant=True)
        assert lists_of(found).dealt == 0
        assert (main_of(found).chunk_blocks, main_of(found).max_chunks) == (32, 8)
        prefill = prepared(rows, 1, cache(16384), batch_invariant=True, op="sparse_prefill")
        assert lists_of(prefill).dealt == 1
        assert main_of(prefill).max_chunks == 1

"""Tile shapes are a pure function; measured ones come from a file."""

from __future__ import annotations

import pytest

from flashmla_hub.backends.triton import config, tuned
from flashmla_hub.backends.triton.dense_bound import BATCH_CLASSES, DenseKernel
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

H100 = DeviceInfo("nvidia", "sm_90", "cuda", name="NVIDIA H100")
KEY = KernelKey(h_q=16)


@pytest.mark.parametrize(("vendor", "arch"), config.TARGETS)
@pytest.mark.parametrize("h_q", [1, 12, 16, 32, 96, 128])
def test_every_target_has_a_tile_for_every_row_count(vendor: str, arch: str, h_q: int) -> None:
    device = DeviceInfo(vendor, arch, "cuda", simulated=True)
    for op in ("dense_decode", "sparse_decode", "sparse_prefill"):
        found = config.config_for(KernelKey(op=op, h_q=h_q), device)
        assert found.block_h >= min(h_q, 16)
        assert found.pdl == (arch == "sm_90")


@pytest.mark.parametrize(
    ("shared", "block_n"), [(200_000, 64), (101_376, 32), (65_536, 16), (0, 16)]
)
def test_an_unknown_card_is_placed_by_its_shared_memory(shared: int, block_n: int) -> None:
    device = DeviceInfo("nobody", "x1", "cuda", shared_memory=shared, simulated=True)
    assert config.config_for(KEY, device).block_n == block_n


def test_a_gluon_form_is_asked_for_on_hopper() -> None:
    for key in (KernelKey(h_q=128), KernelKey(h_q=128, s_q=2), KernelKey(h_q=32)):
        found = config.config_for(key, H100)
        assert found.gluon
        assert found.step == 2  # it takes two blocks at a time: a part of one would waste half
    for change in ({"page_block_size": 16}, {"batch_invariant": True}, {"d_qk": 512}):
        assert not config.config_for(KernelKey(h_q=128).with_(**change), H100).gluon


def test_the_form_for_few_rows_reads_pages_of_any_size() -> None:
    for change in ({}, {"page_block_size": 16}, {"page_block_size": 1}, {"h_q": 8, "s_q": 2},
                   {"h_q": 64, "h_kv": 4}, {"kv_strides": "token_strided"}):  # fmt: skip
        found = config.config_for(KEY.with_(**change), H100)
        assert found.gluon, change
        assert (found.block_h, found.block_n, found.step) == (16, 64, 1), change
    for change in ({"batch_invariant": True}, {"d_qk": 512}, {"kv_format": "v32"}):
        assert not config.config_for(KEY.with_(**change), H100).gluon, change


def test_the_form_for_lists_is_asked_for_where_it_need_not_pad_much() -> None:
    sparse = KernelKey(op="sparse_decode", h_q=64, topk=2048)
    prefill = sparse.with_(op="sparse_prefill", page_block_size=1)
    for key in (sparse, sparse.with_(kv_format="v32"), prefill, prefill.with_(attn_sink=True)):
        found = config.config_for(key, H100)
        assert found.gluon, key
        assert (found.block_h, found.block_n, found.step) == (64, 64, 2), key
    for key in (sparse.with_(h_q=32), sparse.with_(kv_format="model1", d_qk=512),
                sparse.with_(extra_topk=64), prefill.with_(d_qk=512)):  # fmt: skip
        assert not config.config_for(key, H100).gluon, key


def test_masked_blocks_have_a_loop_of_their_own_in_large_batches_only() -> None:
    def tails(key: KernelKey) -> list[bool]:
        kernel = DenseKernel(key, H100, config.config_for(key, H100))
        offered = (found for n in BATCH_CLASSES for found in kernel.launchers(n))
        return [mine.constants["SPLIT_TAIL"] for name, mine, _ in offered if name == "dense"]

    key = KernelKey(h_q=32, page_block_size=16)
    assert tails(KEY.with_(d_qk=512)) == [False] * len(BATCH_CLASSES)
    assert tails(key) == [n > 32 for n in BATCH_CLASSES]
    # the batch decides the class, and must not decide the bits
    assert tails(key.with_(batch_invariant=True)) == [True] * len(BATCH_CLASSES)


def test_the_combine_takes_a_step_for_all_partials_where_a_few_rows_have_many() -> None:
    assert config.combine_for(128, 66, 512) == config.Combine(1, 64, 64)  # 1 request of 128 heads
    assert config.combine_for(128, 17, 512) == config.Combine(1, 256, 16)  # 8 of 16 heads
    for rows in (1, 17, 129, 1025, 10**6):
        tile = config.combine_for(rows, 32, 256)
        assert 256 % tile.cols == 0


def test_a_measured_config_replaces_the_shipped_one_but_never_for_batch_invariance() -> None:
    shipped = config.config_for(KEY, H100)
    other = next(c for c in tuned.trials(KEY, H100).values() if c != shipped)
    assert tuned.config(KEY, H100) == shipped
    tuned.keep(KEY, H100, other)
    assert tuned.config(KEY, H100) == other
    assert tuned.config(KernelKey(h_q=32), H100) == config.config_for(KernelKey(h_q=32), H100)
    invariant = KEY.with_(batch_invariant=True)
    assert tuned.config(invariant, H100) == config.config_for(invariant, H100)


def test_a_broken_file_of_measured_configs_is_ignored() -> None:
    path = tuned.FILE.path(H100)
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, "configs": {"x": {}}}')
    assert tuned.config(KEY, H100) == config.config_for(KEY, H100)

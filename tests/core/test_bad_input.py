"""Every wrong argument is named, with its actual and its expected value, before a backend runs."""

from __future__ import annotations

import math

import pytest
import torch
from core_helpers import Narrow, dense, sparse

import flashmla_hub as hub
from flashmla_hub import InvalidRequestError
from flashmla_hub.testing import registered


def changed(**changes):
    return lambda: {**dense(), **changes}


WRONG = {
    "q is None": (changed(q=None), "q"),
    "q is a list": (changed(q=[1.0]), "q"),
    "q has 3 dimensions": (changed(q=torch.zeros(2, 4, 576)), "q.shape"),
    "q is float64": (changed(q=torch.zeros(2, 1, 4, 576, dtype=torch.float64)), "q.dtype"),
    "q has no heads": (changed(q=torch.zeros(2, 1, 0, 576)), "q.shape"),
    "q has no queries": (changed(q=torch.zeros(2, 0, 4, 576)), "q.shape"),
    "q is transposed": (changed(q=torch.zeros(2, 1, 576, 4).transpose(2, 3)), "q.stride()"),
    "k_cache is None": (changed(k_cache=None), "k_cache"),
    "k_cache is of another dtype": (
        changed(k_cache=torch.zeros(6, 8, 1, 576).half()), "k_cache.dtype"),
    "k_cache has another head dim": (changed(k_cache=torch.zeros(6, 8, 1, 512)), "k_cache.shape"),
    "k_cache has pages of 0 tokens": (changed(k_cache=torch.zeros(6, 0, 1, 576)), "k_cache.shape"),
    "k_cache has no KV head": (changed(k_cache=torch.zeros(6, 8, 0, 576)), "k_cache.shape"),
    "k_cache has no page": (changed(k_cache=torch.zeros(0, 8, 1, 576)), "k_cache.shape"),
    "k_cache is elsewhere": (
        changed(k_cache=torch.zeros(6, 8, 1, 576, device="meta")), "k_cache.device"),
    "h_q is no multiple of h_kv": (changed(k_cache=torch.zeros(6, 8, 3, 576)), "h_q % h_kv"),
    "block_table is None": (changed(block_table=None), "block_table"),
    "block_table is int64": (changed(block_table=torch.zeros(2, 3).long()), "block_table.dtype"),
    "block_table has another batch": (
        changed(block_table=torch.zeros(3, 3, dtype=torch.int32)), "block_table.shape"),
    "block_table is flat": (
        changed(block_table=torch.zeros(6, dtype=torch.int32)), "block_table.shape"),
    "block_table is transposed": (
        changed(block_table=torch.zeros(3, 2, dtype=torch.int32).t()), "block_table.stride()"),
    "cache_seqlens is None": (changed(cache_seqlens=None), "cache_seqlens"),
    "cache_seqlens is a list": (changed(cache_seqlens=[1, 2]), "cache_seqlens"),
    "cache_seqlens is int64": (changed(cache_seqlens=torch.zeros(2).long()), "cache_seqlens.dtype"),
    "cache_seqlens is too long": (
        changed(cache_seqlens=torch.zeros(3, dtype=torch.int32)), "cache_seqlens.shape"),
    "cache_seqlens is elsewhere": (
        changed(cache_seqlens=torch.zeros(2, dtype=torch.int32, device="meta")),
        "cache_seqlens.device"),
    "head_dim_v goes with no d_qk": (changed(head_dim_v=256), "q.shape[-1]/head_dim_v"),
    "head_dim_v is None": (changed(head_dim_v=None), "head_dim_v"),
    "head_dim_v is a float": (changed(head_dim_v=512.0), "head_dim_v"),
    "softmax_scale is NaN": (changed(softmax_scale=math.nan), "softmax_scale"),
    "softmax_scale is infinite": (changed(softmax_scale=math.inf), "softmax_scale"),
    "softmax_scale is a tensor": (changed(softmax_scale=torch.tensor(0.1)), "softmax_scale"),
    "softmax_scale is a string": (changed(softmax_scale="0.1"), "softmax_scale"),
    "causal is a string": (changed(causal="yes"), "causal"),
    "is_fp8_kvcache without an FP8 cache": (changed(is_fp8_kvcache=True), "k_cache.dtype"),
    "kv_format without an FP8 cache": (changed(kv_format="v32"), "kv_format"),
    "attn_sink in a dense call": (changed(attn_sink=torch.zeros(4)), "attn_sink"),
    "topk_length in a dense call": (
        changed(topk_length=torch.zeros(2, dtype=torch.int32)), "topk_length"),
    "metadata is a string": (changed(tile_scheduler_metadata="meta"), "tile_scheduler_metadata"),
    "metadata is a float tensor": (
        changed(tile_scheduler_metadata=torch.zeros(1, 8)), "tile_scheduler_metadata"),
    "backend is unknown": (changed(backend="nothing"), "backend"),
    "backend is a number": (changed(backend=3), "backend"),
    "out has another shape": (changed(out=torch.zeros(2, 1, 4, 576)), "out.shape"),
    "out has another dtype": (changed(out=torch.zeros(2, 1, 4, 512).half()), "out.dtype"),
    "lse_out has another dtype": (changed(lse_out=torch.zeros(2, 4, 1).half()), "lse_out.dtype"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_dense(what):
    make, argument = WRONG[what]
    port = Narrow(rank=99)
    with registered(port), pytest.raises(InvalidRequestError) as caught:
        hub.flash_mla_with_kvcache(**make())
    assert caught.value.argument == argument, str(caught.value)
    assert str(caught.value.actual) in str(caught.value)
    assert caught.value.expected
    assert not port.calls


WRONG_SPARSE = {
    "causal": ({"causal": True}, "causal"),
    "indices of another batch": (
        {"indices": torch.zeros(3, 1, 6, dtype=torch.int32)}, "indices.shape"),
    "indices are int64": ({"indices": torch.zeros(2, 1, 6).long()}, "indices.dtype"),
    "indices are flat": ({"indices": torch.zeros(6, dtype=torch.int32)}, "indices.shape"),
    "attn_sink is bfloat16": ({"attn_sink": torch.zeros(4).bfloat16()}, "attn_sink.dtype"),
    "attn_sink has too many heads": ({"attn_sink": torch.zeros(5)}, "attn_sink.shape"),
    "topk_length is too long": (
        {"topk_length": torch.zeros(3, dtype=torch.int32)}, "topk_length.shape"),
    "extra cache without indices": (
        {"extra_k_cache": torch.zeros(2, 8, 1, 576)}, "extra_indices_in_kvcache"),
    "extra indices without a cache": (
        {"extra_indices_in_kvcache": torch.zeros(2, 1, 3, dtype=torch.int32)}, "extra_k_cache"),
    "extra length without a cache": (
        {"extra_topk_length": torch.zeros(2, dtype=torch.int32)}, "extra_topk_length"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_SPARSE)
def test_sparse(what):
    changes, argument = WRONG_SPARSE[what]
    with pytest.raises(InvalidRequestError) as caught:
        hub.flash_mla_with_kvcache(**{**sparse(), **changes})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"q": None}, "q"),
        ({"kv": None}, "kv"),
        ({"kv": torch.zeros(8, 1, 512)}, "kv.shape"),
        ({"indices": None}, "indices"),
        ({"indices": torch.zeros(4, 2, 3, dtype=torch.int32)}, "indices.shape"),
        ({"sm_scale": math.nan}, "sm_scale"),
        ({"d_v": 256}, "q.shape[-1]/d_v"),
        ({"topk_length": torch.zeros(4)}, "topk_length.dtype"),
    ],
)
def test_prefill(changes, argument):
    args = {
        "q": torch.zeros(4, 4, 576),
        "kv": torch.zeros(8, 1, 576),
        "indices": torch.zeros(4, 1, 3, dtype=torch.int32),
        "sm_scale": 0.1,
    }
    with pytest.raises(InvalidRequestError) as caught:
        hub.flash_mla_sparse_fwd(**{**args, **changes})
    assert caught.value.argument == argument


def test_outputs_may_not_overlap_an_input_or_each_other():
    args = dense(d_qk=512)
    args["head_dim_v"] = 512
    with pytest.raises(InvalidRequestError, match="memory shared with q"):
        hub.flash_mla_with_kvcache(**args, out=args["q"])
    pool = torch.zeros(2 * 4 * 512 + 8)
    out, lse = pool[: 2 * 4 * 512].view(2, 1, 4, 512), pool[8:16].view(2, 4, 1)
    with pytest.raises(InvalidRequestError, match="memory shared with out"):
        hub.flash_mla_with_kvcache(**args, out=out, lse_out=lse)


def test_requires_grad_is_refused_while_grad_mode_is_on():
    args = dense()
    args["q"].requires_grad_()
    with pytest.raises(InvalidRequestError, match="no backward"):
        hub.flash_mla_with_kvcache(**args)
    with torch.no_grad():
        hub.flash_mla_with_kvcache(**args)
    with pytest.raises(InvalidRequestError, match="no backward"):  # though its facts are known now
        hub.flash_mla_with_kvcache(**args)


def test_a_wrong_call_is_refused_again_after_a_right_one():
    args, (meta, _) = dense(), hub.get_mla_metadata()
    hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)
    for changes, argument in (
        ({"softmax_scale": math.nan}, "softmax_scale"),
        ({"k_cache": args["k_cache"].half()}, "k_cache.dtype"),
        ({"out": torch.zeros(1)}, "out.shape"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            hub.flash_mla_with_kvcache(**{**args, **changes}, tile_scheduler_metadata=meta)
        assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("lens", "table", "argument"),
    [
        ([25, 0], None, "cache_seqlens[0]"),
        ([-1, 0], None, "cache_seqlens[0]"),
        ([9, 9], [[0, 1, 2], [3, 6, 5]], "block_table[1, 1]"),
        ([9, 9], [[-1, 1, 2], [3, 4, 5]], "block_table[0, 0]"),
    ],
)
def test_check_values_reads_the_device_and_says_where(lens, table, argument):
    args = dense(lens=lens)
    if table is not None:
        args["block_table"] = torch.tensor(table, dtype=torch.int32)
    with pytest.raises(InvalidRequestError) as caught:
        hub.flash_mla_with_kvcache(**args, check_values=True)
    assert caught.value.argument == argument


def test_check_values_passes_garbage_that_no_row_uses():
    args = dense(lens=[8, 0])
    args["block_table"][0, 1:] = 2147480000
    args["block_table"][1] = -7
    hub.flash_mla_with_kvcache(**args, check_values=True)


@pytest.mark.parametrize("name", ["descale_q", "descale_k"])
def test_keywords_of_later_generations_without_a_meaning_here_are_refused_by_name(name):
    with pytest.raises(hub.NotSupportedError, match=name):
        hub.flash_mla_with_kvcache(**dense(), **{name: torch.ones(1)})
    with pytest.raises(hub.NotSupportedError, match="indexer_topk"):
        hub.flash_mla_with_kvcache(**dense(), indexer_topk=4)
    hub.flash_mla_with_kvcache(**dense(), use_legacy=True, enable_batch_invariant=False)


def test_a_width_that_several_layouts_have_is_refused_with_their_names():
    args = dense(dtype=torch.bfloat16)
    args["k_cache"] = torch.zeros(6, 8, 1, 528, dtype=torch.uint8)
    with pytest.raises(hub.InvalidRequestError, match=r"528.*v32_no_rope.*v41"):
        hub.flash_mla_with_kvcache(**args)
    with pytest.raises(hub.InvalidRequestError, match=r"kv_format.*v41_fp4.*v41\+v41_fp4"):
        hub.flash_mla_with_kvcache(**args, kv_format="v41_fp4")


def test_a_scale_for_the_cache_is_refused_where_the_layout_has_its_own():
    args = dense(dtype=torch.bfloat16)
    args["k_cache"] = torch.zeros(6, 8, 1, 656, dtype=torch.uint8)
    with pytest.raises(hub.NotSupportedError, match=r"descale_k.*v32"):
        hub.flash_mla_with_kvcache(**args, kv_format="v32", descale_k=torch.ones(1))
    with pytest.raises(hub.NotSupportedError, match="descale_q"):
        hub.flash_mla_with_kvcache(**args, kv_format="v32", descale_q=torch.ones(1))

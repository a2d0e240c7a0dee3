"""Each rewrite is exact: a narrow port behind it gives what the oracle says."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from core_helpers import Narrow, dense, sparse

import flashmla_hub as hub
from flashmla_hub.capabilities import between, one_of
from flashmla_hub.testing import registered


def run_dense(args, backend, causal=False):
    scale = args["q"].shape[-1] ** -0.5
    with registered(backend):
        out, lse = hub.flash_mla_with_kvcache(**args, causal=causal, backend=backend.name)
    expected = oracle.dense_decode(
        args["q"], args["k_cache"], args["block_table"], args["cache_seqlens"],
        d_v=args["head_dim_v"], softmax_scale=scale, causal=causal,
    )  # fmt: skip
    oracle.check(out, lse, expected, backend.name)
    assert out.is_contiguous()
    return out, lse


@pytest.mark.parametrize(("h_q", "h_kv"), [(3, 1), (12, 1), (6, 2), (64, 1)])
def test_pad_heads_keeps_each_groups_heads(h_q, h_kv):
    port = Narrow(h_q=one_of(16, 64, 96), h_kv=between(1, 4), rewrites=("pad_heads",))
    run_dense(dense(h_q=h_q, h_kv=h_kv), port)
    assert port.bound[0].h_q in (16, 64, 96)
    assert port.calls[0][0].shape[2] == port.bound[0].h_q


def test_pad_heads_in_sparse_decode_leaves_the_sink_alone():
    args = sparse(h_q=5)
    sink = torch.tensor([0.5, float("inf"), float("-inf"), -1.0, 2.0])
    port = Narrow(
        op="sparse_decode", h_q=one_of(16), topk=between(1), attn_sink=True, rewrites=("pad_heads",)
    )
    with registered(port):
        out, lse = hub.flash_mla_with_kvcache(**args, attn_sink=sink, backend="narrow")
    expected = oracle.sparse_decode(
        args["q"], args["k_cache"], args["indices"], d_v=512, softmax_scale=576**-0.5,
        attn_sink=sink,
    )  # fmt: skip
    oracle.check(out, lse, expected)


def test_pad_heads_in_prefill():
    g = torch.Generator().manual_seed(3)
    q, kv = torch.randn(4, 6, 576, generator=g), torch.randn(20, 2, 576, generator=g)
    indices = torch.randint(-1, 22, (4, 2, 7), generator=g).to(torch.int32)
    indices[2] = -1
    port = Narrow(
        op="sparse_prefill", h_q=one_of(8), h_kv=one_of(2), topk=between(1), rewrites=("pad_heads",)
    )
    with registered(port):
        out, max_logits, lse = hub.flash_mla_sparse_fwd(q, kv, indices, 0.05, backend="narrow")
    expected = oracle.sparse_prefill(q, kv, indices, d_v=512, softmax_scale=0.05)
    oracle.check(out.unsqueeze(1), lse.unsqueeze(-1), expected)
    assert torch.allclose(max_logits.double(), expected.max_logits.squeeze(-1), rtol=1e-5)


@pytest.mark.parametrize(("page", "accepted"), [(32, 8), (24, 8), (64, 16)])
def test_split_pages_only_rewrites_the_table(page, accepted):
    args = dense(page=page, width=2, lens=[page + 5, 3])
    args["block_table"][1, 1] = 2147480000  # garbage past the row's pages
    port = Narrow(page_block_size=one_of(accepted), rewrites=("split_pages",))
    run_dense(args, port)
    assert port.calls[0][1].data_ptr() == args["k_cache"].data_ptr()


def test_split_pages_needs_packed_pages():
    port = Narrow(
        page_block_size=one_of(8), kv_strides=("packed", "page_strided"), rewrites=("split_pages",)
    )
    key = hub.KernelKey(dtype="float32", page_block_size=16, kv_strides="page_strided")
    with registered(port):
        assert hub.explain(key, backend="narrow").selected is None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q", [2, 4])
def test_fold_s_q_gives_each_query_its_length(causal, s_q):
    args = dense(batch=3, s_q=s_q, lens=[20, 1, 0])
    port = Narrow(s_q=one_of(1), causal=(False,), rewrites=("fold_s_q",))
    run_dense(args, port, causal=causal)
    assert port.bound[0].s_q == 1
    assert not port.bound[0].causal
    assert port.calls[0][0].shape[0] == 3 * s_q


def test_fold_s_q_in_sparse_decode():
    args = sparse(s_q=3)
    length = torch.tensor([4, 2], dtype=torch.int32)
    port = Narrow(
        op="sparse_decode", s_q=one_of(1), topk=between(1), topk_length=True, rewrites=("fold_s_q",)
    )
    with registered(port):
        out, lse = hub.flash_mla_with_kvcache(**args, topk_length=length, backend="narrow")
    expected = oracle.sparse_decode(
        args["q"], args["k_cache"], args["indices"], d_v=512, softmax_scale=576**-0.5,
        topk_length=length,
    )  # fmt: skip
    oracle.check(out, lse, expected)


def nan_where_empty(result):
    """A port that leaves rows without a visible key undefined."""
    out, lse = result
    undefined = lse == float("inf")
    lse = lse.masked_fill(undefined, float("nan"))
    return out.masked_fill(undefined.transpose(1, 2).unsqueeze(-1), float("nan")), lse


@pytest.mark.parametrize("causal", [False, True])
def test_repair_empty_rows(causal):
    args = dense(batch=4, s_q=3, lens=[0, 1, 2, 20])
    port = Narrow(finish=nan_where_empty, empty_rows=False, rewrites=("repair_empty_rows",))
    run_dense(args, port, causal=causal)


def test_repair_empty_rows_in_sparse_decode():
    args = sparse(batch=3)
    args["indices"][1] = -1
    args["indices"][2] = 5 * 8  # past the cache
    port = Narrow(
        op="sparse_decode", topk=between(1), finish=nan_where_empty, empty_rows=False,
        rewrites=("repair_empty_rows",),
    )  # fmt: skip
    with registered(port):
        out, lse = hub.flash_mla_with_kvcache(**args, backend="narrow")
    assert lse[1:].isposinf().all()
    assert not out[1:].any()
    assert lse[0].isfinite().all()


def test_lse_base_converts_and_keeps_infinities():
    def base2(result):
        return result[0], result[1] / math.log(2.0)

    port = Narrow(finish=base2, lse_base="2", rewrites=("lse_base",))
    _, lse = run_dense(dense(batch=2, lens=[7, 0]), port)
    assert lse[1].isposinf().all()


def test_pad_topk_with_invalid_entries():
    args = sparse(topk=6)
    port = Narrow(op="sparse_decode", topk=between(8, None, 8), rewrites=("pad_topk",))
    with registered(port):
        out, lse = hub.flash_mla_with_kvcache(**args, backend="narrow")
    expected = oracle.sparse_decode(
        args["q"], args["k_cache"], args["indices"], d_v=512, softmax_scale=576**-0.5
    )
    oracle.check(out, lse, expected)
    assert port.calls[0][2].shape[-1] == 8


def test_contiguous_copies_are_shown_as_such():
    args = dense()
    args["q"] = torch.randn(2, 1, 4, 600)[..., :576]
    pool = torch.randn(6, 10, 1, 576)
    args["k_cache"] = pool[:, :8]
    port = Narrow(rewrites=("contiguous_q", "contiguous_kv"))
    run_dense(args, port)
    with registered(port):
        decision = hub.explain_call(**args, backend="narrow")
    rewrites = " ".join(decision.candidate.rewrites)
    assert "q copied" in rewrites
    assert "WHOLE cache copied" in rewrites
    assert decision.candidate.rank == 70 - 41


def test_rewrites_compose():
    def ugly(result):
        out, lse = nan_where_empty(result)
        return out, lse / math.log(2.0)

    args = dense(batch=2, s_q=2, h_q=12, page=32, width=2, lens=[40, 1])
    port = Narrow(
        h_q=one_of(16), s_q=one_of(1), causal=(False,), page_block_size=one_of(16), finish=ugly,
        empty_rows=False, lse_base="2",
        rewrites=("pad_heads", "split_pages", "fold_s_q", "lse_base", "repair_empty_rows"),
    )  # fmt: skip
    run_dense(args, port, causal=True)
    with registered(port):
        decision = hub.explain_call(**args, causal=True, backend="narrow")
    names = [rewrite.split(":")[0] for rewrite in decision.candidate.rewrites]
    assert names == ["pad_heads", "split_pages", "fold_s_q", "lse_base", "repair_empty_rows"]


def test_what_needs_a_rewrite_that_is_not_allowed_is_refused():
    port = Narrow(lse_base="2")
    with registered(port):
        decision = hub.explain(hub.KernelKey(dtype="float32"), backend="narrow")
    assert decision.selected is None
    reasons = next(c.reasons for c in decision.candidates if c.backend == "narrow")
    assert reasons == ("lse is in base 2, and the rewrite lse_base is not allowed",)


def test_out_and_lse_out_are_written_through_rewrites():
    args = dense(h_q=12)
    out, lse = torch.full((2, 1, 12, 512), math.nan), torch.full((2, 12, 1), math.nan)
    port = Narrow(h_q=one_of(16), rewrites=("pad_heads",))
    with registered(port):
        got = hub.flash_mla_with_kvcache(**args, backend="narrow", out=out, lse_out=lse)
        expected = hub.flash_mla_with_kvcache(**args, backend="torch")
    assert got[0] is out
    assert got[1] is lse
    assert torch.allclose(out, expected[0], rtol=1e-5, atol=1e-6)
    assert torch.allclose(lse, expected[1])

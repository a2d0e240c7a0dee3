"""Calls that are nearly right: refused by a public error of a line, with every output as it was."""

from __future__ import annotations

import pickle

import pytest
import torch
from core_helpers import Narrow, dense, sparse
from test_tracing import prefill

import flashmla_hub as hub
from flashmla_hub import InvalidRequestError, KernelKey
from flashmla_hub.testing import registered

ONES = torch.ones(1)


def outputs(args):
    """out and lse_out of a decode call, filled with a mark."""
    batch, s_q, h_q, _ = args["q"].shape
    return torch.full((batch, s_q, h_q, 512), 7.0), torch.full((batch, h_q, s_q), 7.0)


# {what: changes of a dense call that make it wrong}
WRONG = {
    "stride-0 out": lambda a: {"out": torch.full((1, 1, 1, 512), 7.0).expand(2, 1, 4, 512)},
    "stride-0 lse": lambda a: {"lse_out": torch.full((1, 1, 1), 7.0).expand(2, 4, 1)},
    "out wants a gradient": lambda a: {"out": outputs(a)[0].requires_grad_()},
    "lse wants a gradient": lambda a: {"lse_out": outputs(a)[1].requires_grad_()},
    "out is q": lambda a: {"out": a["q"][..., :512]},
    "out is the cache": lambda a: {"out": a["k_cache"].flatten()[:4096].view(2, 1, 4, 512)},
    "lse is q": lambda a: {"lse_out": a["q"].flatten()[:8].view(2, 4, 1)},
    "out is the table": lambda a: {"out": a["block_table"]},
    "lse is the lengths": lambda a: {"lse_out": a["cache_seqlens"]},
    "out and lse are one": lambda a: {
        "out": (pool := torch.full((4096 + 8,), 7.0))[:4096].view(2, 1, 4, 512),
        "lse_out": pool[4090:4098].view(2, 4, 1),
    },
    "lse of another dtype": lambda a: {"lse_out": outputs(a)[1].double()},
    "lse of another shape": lambda a: {"lse_out": outputs(a)[1].transpose(1, 2)},
    "scale of 400 digits": lambda a: {"softmax_scale": 10**400},
    "scale 1e300": lambda a: {"softmax_scale": 1e300},
    "scale -1e31": lambda a: {"softmax_scale": -1e31},
    "scale nan": lambda a: {"softmax_scale": float("nan")},
    "check_values a tensor": lambda a: {"check_values": torch.ones(2)},
    "invariant a tensor": lambda a: {"enable_batch_invariant": torch.ones(2)},
    "indexer a tensor": lambda a: {"indexer_topk": torch.ones(2)},
    "causal a tensor": lambda a: {"causal": torch.ones(2)},
    "backend a list": lambda a: {"backend": ["torch"]},
    "backend of 9000 letters": lambda a: {"backend": "x" * 9000},
    "kv_format of 9000 letters": lambda a: {"kv_format": "x" * 9000},
    "head_dim_v of 5000 digits": lambda a: {"head_dim_v": 10**5000},
    "head_dim_v a long list": lambda a: {"head_dim_v": [0] * 9000},
    "metadata a long text": lambda a: {"tile_scheduler_metadata": "x" * 9000},
    "descale of two": lambda a: {"descale_k": torch.ones(2)},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_says_so_in_a_line_and_writes_nothing(what):
    args = dense()
    out, lse = outputs(args)
    given = {"out": out, "lse_out": lse} | WRONG[what](args)
    before = {n: x.detach().clone() for n, x in {**args, **given}.items()
              if isinstance(x, torch.Tensor)}  # fmt: skip
    for backend in ("torch", "port"):
        with registered(Narrow("port")):
            call = args | {"backend": backend} | given
            with pytest.raises(hub.FlashMLAHubError) as caught:
                hub.flash_mla_with_kvcache(**call)
        assert isinstance(caught.value, InvalidRequestError), caught.value
        assert len(str(caught.value)) < 1200
        pickle.dumps(str(caught.value))
        for name, old in before.items():
            now = {**args, **given}[name].detach()
            assert torch.equal(now, old), f"{name} was written"


@pytest.mark.parametrize("scale", [1e30, -1e30, 1e-300, -0.0, 0, 5e-324])
def test_scales_at_the_ends_of_their_range_are_right(scale):
    args = dense(lens=[3, 1])
    args["q"], args["k_cache"] = args["q"] / 100, args["k_cache"] / 100
    out, lse = hub.flash_mla_with_kvcache(**args, softmax_scale=scale)
    for row, length in enumerate((3, 1)):
        page = args["k_cache"][args["block_table"][row, 0].long(), :length, 0].double()
        logits = args["q"][row, 0].double() @ page.T * scale
        want = logits.softmax(-1) @ page[:, :512]
        assert torch.allclose(out[row, 0].double(), want, atol=1e-6), scale
        assert torch.allclose(lse[row, :, 0].double(), logits.logsumexp(-1), rtol=1e-5), scale


def test_an_out_that_wants_a_gradient_is_fine_without_grad_mode():
    args = dense()
    out = outputs(args)[0].requires_grad_()
    with torch.no_grad():
        hub.flash_mla_with_kvcache(**args, out=out)
        assert torch.equal(out, hub.flash_mla_with_kvcache(**args)[0])


@pytest.mark.parametrize("wrong", [{"out": torch.zeros(3, 4, 512).bfloat16()},
                                   {"out": torch.zeros(1, 1, 512).expand(3, 4, 512)},
                                   {"out": torch.zeros(3, 4, 256)},
                                   {"sm_scale": None, "d_v": 1.0}, {"sm_scale": 1e31},
                                   {"batch_invariant": 1}, {"backend": 3}])  # fmt: skip
def test_a_wrong_prefill_call(wrong):
    with pytest.raises(InvalidRequestError):
        hub.flash_mla_sparse_fwd(**prefill() | wrong)


def test_outputs_that_a_port_cannot_write_are_copied_and_told():
    """Strides and addresses of out are facts: a port that takes packed ones gets memory of its
    own, one that declares strides writes in place."""
    args = dense()
    want = hub.flash_mla_with_kvcache(**args)
    wide = torch.full((2, 1, 4, 600), 7.0)
    odd = torch.full((4097,), 7.0)[1:].view(2, 1, 4, 512)
    plain = Narrow("plain", alignment=16)
    strided = Narrow("strided", out_strides=("packed", "token_strided"))
    for port, out, copied in ((plain, wide[..., 8:520], True), (plain, odd, True),
                              (strided, wide[..., 8:520], False)):  # fmt: skip
        with registered(port):
            out.fill_(7)
            decision = hub.explain_call(**args, out=out, backend=port.name)
            steps = [step.name for step in decision.candidate.steps]
            assert ("own_out" in steps) == copied
            got = hub.flash_mla_with_kvcache(**args, out=out, backend=port.name)
            assert got[0] is out
            assert torch.equal(out, want[0])
            assert (port.calls[-1].out is None) == copied
    assert (wide[..., :8] == 7).all()
    assert (wide[..., 520:] == 7).all()


@pytest.mark.parametrize("name", ["q", "k_cache", "extra_k_cache"])
def test_alignment_of_each_tensor_is_a_fact(name):
    """What a port needs is asked of every tensor: q is copied where that is allowed, caches are
    never; the torch backend takes the call as it is."""
    from flashmla_hub.capabilities import ANY

    args = sparse(pages=4) | {"backend": None}
    args |= {"extra_k_cache": args["k_cache"].clone(), "extra_indices_in_kvcache": args["indices"]}
    want = hub.flash_mla_with_kvcache(**args)
    x = args[name]
    args[name] = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    wide = {"op": "sparse_decode", "topk": ANY, "extra_topk": ANY, "extra_page_block_size": ANY}
    strict, copying = (
        Narrow("strict", rank=99, alignment=16, **wide),
        Narrow("copying", rank=99, alignment=16, rewrites=("contiguous_q",), **wide),
    )
    for port, serves in ((strict, False), (copying, name == "q")):
        with registered(port):
            decision = hub.explain_call(**args)
            own = next(c for c in decision.candidates if c.backend == port.name)
            assert own.accepted == serves
            assert decision.selected == (port.name if serves else "torch")
            if not serves:
                field = {"k_cache": "kv", "extra_k_cache": "extra_kv"}.get(name, name)
                assert any(f"{field}_alignment=4" in reason for reason in own.reasons)
            assert torch.equal(hub.flash_mla_with_kvcache(**args)[0], want[0])


@pytest.mark.parametrize("layout", ["v32", "model1"])
@pytest.mark.parametrize("beside", [0, 4, 16])
def test_token_strides_of_one_byte_caches_are_facts(layout, beside):
    """A pool that holds another record beside each token (656 + 132 bytes occur)."""
    from flashmla_hub import kv_format

    fmt = kv_format.get(layout)
    row = fmt.bytes_per_token + (beside if layout == "v32" else 0)
    pool = torch.zeros(4 * 64 * row + 4 * 576 * 64, dtype=torch.uint8)
    page = 64 * row if layout == "v32" else fmt.page_stride(64) + beside
    cache = pool.as_strided((4, 64, 1, fmt.bytes_per_token), (page, row, row, 1))
    key = hub.explain_call(
        torch.zeros(1, 1, 4, fmt.d_qk).bfloat16(), cache, torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32), 512, kv_format=layout,
    ).choice.kernel  # fmt: skip
    assert key.kv_alignment == (4 if beside == 4 else 16)
    strides = {"v32": "token_strided", "model1": "page_strided"}[layout]
    assert key.kv_strides == (strides if beside else "packed")


@pytest.mark.parametrize("call", [
    lambda a: hub.explain_call([1], *list(a.values())[1:]),
    lambda a: hub.explain_call(a["q"], None, *list(a.values())[2:]),
    lambda a: hub.explain_call(**a, out=torch.zeros(3)),
    lambda a: hub.explain_call(*(x.to("meta") for x in list(a.values())[:4]), 512),
])  # fmt: skip
def test_explain_call_checks_before_it_looks(call):
    with pytest.raises(InvalidRequestError):
        call(dense())


def test_explain_call_of_an_empty_call_names_no_backend():
    args = dense()
    for changes in ({"block_table": torch.zeros(2, 0, dtype=torch.int32)},
                    {"q": args["q"][:0], "block_table": args["block_table"][:0],
                     "cache_seqlens": args["cache_seqlens"][:0]}):  # fmt: skip
        decision = hub.explain_call(**args | changes)
        assert decision.selected is None
        assert "no row has room" in decision.why
        assert "no row has room" in str(decision)


@pytest.mark.parametrize("changes", [
    {"h_q": 0}, {"s_q": 0}, {"h_kv": 0}, {"h_q": 3, "h_kv": 2}, {"page_block_size": -1},
    {"page_block_size": 0}, {"h_q": "16"}, {"h_q": None}, {"h_q": 2.0}, {"causal": 1},
    {"q_alignment": 3}, {"topk": -1}, {"dtype": None}, {"h_q": True},
])  # fmt: skip
def test_a_key_of_impossible_numbers_is_refused_where_it_enters(changes):
    """A declaration may rely on every field: here one divides by h_q."""
    from flashmla_hub.capabilities import Rule
    from flashmla_hub.request import choice_key
    from flashmla_hub.testing import bind_unchecked

    rule = Rule("divides", lambda key: None if 128 // key.h_q + 64 // key.page_block_size else "")
    key = KernelKey().with_(**changes)
    with registered(Narrow("port", rank=99, rules=(rule,))):
        for enter in (hub.explain, hub.warmup, lambda key: bind_unchecked("torch", key),
                      lambda key: hub.explain(choice_key(key, 1, 64))):  # fmt: skip
            with pytest.raises(InvalidRequestError, match=r"KernelKey\."):
                enter(key)
        assert {b.name: b.status for b in hub.backends()}["port"] != "quarantined"
        assert hub.explain(KernelKey(dtype="float32")).selected == "port"

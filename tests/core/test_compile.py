"""torch.compile: no graph break, the same result, one compilation for a changing batch."""

from __future__ import annotations

import pytest
import torch
from core_helpers import dense, sparse

import flashmla_hub as hub
from flashmla_hub import compiled
from flashmla_hub.call import DecodeArguments


class Layer(torch.nn.Module):
    """A layer with the hub's call in the middle."""

    def __init__(self, **kwargs):
        super().__init__()
        self.kwargs = kwargs
        self.scale = torch.nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, q, k_cache, table, lens, **more):
        meta, splits = hub.get_mla_metadata(lens, q.shape[2], 1)
        out, lse = hub.flash_mla_with_kvcache(
            q * self.scale, k_cache, table, lens, 512, meta, splits, **self.kwargs, **more
        )
        return out + 1, lse * 2


def tensors(args):
    return [args[n] for n in ("q", "k_cache", "block_table", "cache_seqlens")]


def counting():
    """A backend for torch.compile that counts compilations and runs the graph as it is."""
    graphs = []

    def compile_fn(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return graphs, compile_fn


def test_three_batch_sizes_with_one_compilation():
    torch._dynamo.reset()
    graphs, backend = counting()
    layer = Layer(causal=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for batch in (7, 5, 11):  # unlike any other size: torch takes equal sizes for one symbol
        args = dense(batch=batch, s_q=2, h_q=4)
        got, want = compiled(*tensors(args)), layer(*tensors(args))
        assert torch.equal(got[0], want[0]), batch
        assert torch.equal(got[1], want[1]), batch
    assert len(graphs) == 1


def test_automatic_dynamic_shapes_stop_recompiling():
    torch._dynamo.reset()
    graphs, backend = counting()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for batch in (2, 3, 5, 6):
        args = dense(batch=batch)
        assert torch.equal(compiled(*tensors(args))[0], layer(*tensors(args))[0])
    assert len(graphs) == 2


def test_outputs_in_place():
    torch._dynamo.reset()

    def call(q, k_cache, table, lens, out, lse):
        hub.flash_mla_with_kvcache(q, k_cache, table, lens, 512, out=out, lse_out=lse)
        return out * 2

    args = dense()
    out, lse = torch.zeros(2, 1, 4, 512), torch.zeros(2, 4, 1)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got = compiled(*tensors(args), out, lse)
    want = hub.flash_mla_with_kvcache(**args)
    assert torch.equal(out, want[0])
    assert torch.equal(lse, want[1])
    assert torch.equal(got, want[0] * 2)


def test_sparse_decode_and_prefill():
    torch._dynamo.reset()
    args = sparse()

    def decode(q, k_cache, indices):
        return hub.flash_mla_with_kvcache(q, k_cache, None, None, 512, indices=indices)

    got = torch.compile(decode, fullgraph=True, backend="aot_eager")(
        args["q"], args["k_cache"], args["indices"]
    )
    want = hub.flash_mla_with_kvcache(**args)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    q, kv = torch.randn(4, 4, 576), torch.randn(20, 1, 576)
    indices = torch.randint(-1, 20, (4, 1, 7)).int()
    compiled = torch.compile(hub.flash_mla_sparse_fwd, fullgraph=True, backend="aot_eager")
    got, want = compiled(q, kv, indices, 0.05), hub.flash_mla_sparse_fwd(q, kv, indices, 0.05)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_backend_is_selected_at_run_time():
    torch._dynamo.reset()
    from core_helpers import Narrow

    from flashmla_hub.testing import registered

    args, layer = dense(), Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(*tensors(args))
    port = Narrow("port", rank=1)
    with registered(port), hub.use_backend("port"):
        compiled(*tensors(args))
    assert len(port.calls) == 1


def test_a_wrong_shape_is_refused_while_tracing():
    torch._dynamo.reset()
    args = dense()
    args["block_table"] = args["block_table"][:1]
    compiled = torch.compile(Layer(), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"block_table\.shape"):
        compiled(*tensors(args))


def test_fake_results_have_the_shapes_dtypes_and_strides_of_real_ones():
    args = dense(dtype=torch.bfloat16, s_q=2)
    ops = torch.ops.flashmla_hub
    call = compiled._flat(DecodeArguments(*tensors(args), 512, causal=True))
    real = ops.dense_decode(*call)
    fake = ops.dense_decode(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in call))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    torch.library.opcheck(ops.dense_decode.default, call)


INDICES = sparse()["indices"]
# {what: (the call, arguments that eager mode refuses)}
REFUSED = {
    "dense with a sink": (dense, {"attn_sink": torch.zeros(4)}),
    "dense with topk_length": (dense, {"topk_length": torch.ones(2, dtype=torch.int32)}),
    "dense with a second cache": (dense, {"extra_k_cache": torch.zeros(1, 8, 1, 576)}),
    "dense with its lists": (dense, {"extra_indices_in_kvcache": INDICES}),
    "dense with their lengths": (dense, {"extra_topk_length": torch.ones(2, dtype=torch.int32)}),
    "sparse and causal": (sparse, {"causal": True}),
    "values": (lambda: dense(lens=[900, 1]), {"check_values": True}),
    "causal 1": (dense, {"causal": 1}),
    "head_dim_v 512.0": (dense, {"head_dim_v": 512.0}),
    "head_dim_v 256": (dense, {"head_dim_v": 256}),
    "scale True": (dense, {"softmax_scale": True}),
    "scale 1e300": (dense, {"softmax_scale": 1e300}),
    "invariant 1": (dense, {"batch_invariant": 1}),
    "alias 1": (dense, {"enable_batch_invariant": 1}),
    "legacy 1": (dense, {"use_legacy": 1}),
    "descale": (dense, {"descale_k": torch.ones(1)}),
    "indexer": (dense, {"indexer_topk": 5}),
    "layout": (dense, {"kv_format": "v32"}),
    "fp8": (dense, {"is_fp8_kvcache": True}),
    "backend": (dense, {"backend": "no_such_backend"}),
    "metadata": (dense, {"tile_scheduler_metadata": "meta"}),
    "out shape": (dense, {"out": torch.zeros(2, 2, 4, 512)}),
    "out dtype": (dense, {"out": torch.zeros(2, 1, 4, 512, dtype=torch.float64)}),
    "out stride 0": (dense, {"out": torch.zeros(512).expand(2, 1, 4, 512)}),
    "lse shape": (dense, {"lse_out": torch.zeros(2, 1, 4)}),
    "a list": (dense, {"block_table": [[0]]}),
    "sparse out": (sparse, {"out": torch.zeros(2, 1, 4, 256)}),
    "sparse sink": (sparse, {"attn_sink": torch.zeros(3)}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_compiled_call_refuses_what_an_eager_one_does(what):
    make, wrong = REFUSED[what]
    args = make() | wrong
    with pytest.raises(hub.FlashMLAHubError):
        hub.flash_mla_with_kvcache(**args)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: hub.flash_mla_with_kvcache(**args), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=r".") as caught:  # Dynamo's own, around the hub's
        compiled()
    assert not isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("wrong", [{"out": torch.zeros(2, 3, 4, 512)},
                                   {"out": torch.zeros(3, 4, 512).half()}, {"sm_scale": True},
                                   {"d_v": 256}, {"batch_invariant": 1}])  # fmt: skip
def test_a_compiled_prefill_refuses_what_an_eager_one_does(wrong):
    args = {"q": torch.zeros(3, 4, 576), "kv": torch.zeros(20, 1, 576), "sm_scale": 0.05,
            "indices": torch.zeros(3, 1, 7, dtype=torch.int32)} | wrong  # fmt: skip
    with pytest.raises(hub.FlashMLAHubError):
        hub.flash_mla_sparse_fwd(**args)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"."):
        torch.compile(lambda: hub.flash_mla_sparse_fwd(**args), fullgraph=True, backend="eager")()


def test_an_exported_call_is_one_op_with_every_argument():
    args = sparse() | {"attn_sink": torch.ones(4), "backend": "torch"}

    class Module(torch.nn.Module):
        def forward(self, q, k_cache, indices, attn_sink):
            return hub.flash_mla_with_kvcache(
                q, k_cache, None, None, 512, indices=indices, attn_sink=attn_sink, backend="torch"
            )

    given = tuple(args[n] for n in ("q", "k_cache", "indices", "attn_sink"))
    program = torch.export.export(Module(), given)
    assert "flashmla_hub.sparse_decode" in str(program.graph)
    assert torch.equal(program.module()(*given)[0], hub.flash_mla_with_kvcache(**args)[0])


def test_prefill_writes_out_in_place():
    torch._dynamo.reset()
    q, kv = torch.randn(3, 4, 576), torch.randn(20, 1, 576)
    indices = torch.randint(-1, 20, (3, 1, 7)).int()
    out = torch.zeros(3, 4, 512)

    def call(q, kv, indices, out):
        got = hub.flash_mla_sparse_fwd(q, kv, indices, 0.05, out=out)
        return got[1], got[2], out + 1

    got = torch.compile(call, fullgraph=True, backend="aot_eager")(q, kv, indices, out)
    want = hub.flash_mla_sparse_fwd(q, kv, indices, 0.05)
    assert torch.equal(out, want[0])
    assert torch.equal(got[2], want[0] + 1)
    assert torch.equal(got[0], want[1])
    assert torch.equal(got[1], want[2])

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

"""Tracers, transforms and unusual tensors (contract C1.17): shapes, an op in the graph, or an error
of the hub by name; never a raw one, never a constant in place of a length."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Narrow, dense, sparse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import flashmla_hub as hub
from flashmla_hub import InvalidRequestError
from flashmla_hub.capabilities import ANY
from flashmla_hub.testing import registered


def prefill():
    g = torch.Generator().manual_seed(0)
    return {
        "q": torch.randn(3, 4, 576, generator=g), "kv": torch.randn(20, 1, 576, generator=g),
        "indices": torch.randint(-1, 20, (3, 1, 7), generator=g, dtype=torch.int32),
        "sm_scale": 0.05,
    }  # fmt: skip


def with_options(args):
    rows = args["q"].shape[0]
    heads = args["q"].shape[-2]
    return args | {
        "attn_sink": torch.linspace(-1, 1, heads),
        "topk_length": torch.full((rows,), 5, dtype=torch.int32),
    }


CALLS = {
    "dense": (hub.flash_mla_with_kvcache, dense),
    "sparse": (hub.flash_mla_with_kvcache, lambda: with_options(sparse())),
    "prefill": (hub.flash_mla_sparse_fwd, lambda: with_options(prefill())),
}
OPS = {"dense": "dense_decode", "sparse": "sparse_decode", "prefill": "sparse_prefill"}
each_op = pytest.mark.parametrize("op", CALLS)


def split(args):
    """(names of the tensors, the tensors, the rest)"""
    tensors = {n: x for n, x in args.items() if isinstance(x, torch.Tensor)}
    return (
        list(tensors),
        list(tensors.values()),
        {n: x for n, x in args.items() if n not in tensors},
    )


def function(op):
    """The call as a function of its tensors, and those."""
    call, make = CALLS[op]
    names, tensors, rest = split(make())
    return (lambda *xs: call(**dict(zip(names, xs, strict=True)), **rest)), names, tensors


def facts(results):
    return [(x.shape, x.dtype, x.is_contiguous()) for x in results]


@each_op
def test_fake_and_meta_tensors_give_shapes(op):
    call, _, tensors = function(op)
    want = facts(call(*tensors))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in tensors]
        assert facts(call(*fakes)) == want
    assert facts(call(*fakes)) == want  # outside of their mode too
    assert facts(call(*(x.to("meta") for x in tensors))) == want


@each_op
def test_a_fake_call_is_checked(op):
    call, _, tensors = function(op)
    tensors[0] = tensors[0].double()
    with FakeTensorMode() as mode, pytest.raises(InvalidRequestError, match="dtype"):
        call(*map(mode.from_tensor, tensors))


@each_op
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_op_and_no_contents(op, mode):
    call, names, tensors = function(op)
    call(*tensors)  # the call is known: it must be recorded all the same
    graph = make_fx(call, tracing_mode=mode)(*tensors)
    assert "flashmla_hub" in graph.code
    last = names.index("cache_seqlens" if op == "dense" else "topk_length")
    tensors[last] = torch.arange(1, len(tensors[last]) + 1, dtype=torch.int32)
    for got, want in zip(graph(*tensors), call(*tensors), strict=True):
        assert torch.equal(got, want)


@each_op
def test_a_dispatch_mode_sees_one_op(op):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    call, _, tensors = function(op)
    want = call(*tensors)
    with Watch():
        got = call(*tensors)
    assert [name for name in seen if "flashmla_hub" in name] == seen
    assert all(map(torch.equal, got, want))


def test_a_step_s_metadata_hides_no_call_from_a_tracer():
    tensors = function("dense")[2]
    meta, _ = hub.get_mla_metadata()

    def call(*xs):
        return hub.flash_mla_with_kvcache(*xs, 512, meta)

    call(*tensors)
    assert "flashmla_hub" in make_fx(call)(*tensors).code
    for _, transformed in transforms(call, tensors):
        with pytest.raises(InvalidRequestError):
            transformed()


def transforms(call, tensors):
    """Each transform over each tensor that it can be over."""
    for at, x in enumerate(tensors):

        def one(y, at=at):
            return call(*tensors[:at], y, *tensors[at + 1 :])[0]

        yield f"vmap {at}", lambda one=one, x=x: torch.func.vmap(one)(torch.stack([x, x]))
        if x.is_floating_point():
            yield f"grad {at}", lambda one=one, x=x: torch.func.grad(lambda y: one(y).sum())(x)
            yield f"jvp {at}", lambda one=one, x=x: torch.func.jvp(one, (x,), (x,))

            def dual(one=one, x=x):
                with torch.autograd.forward_ad.dual_level():
                    one(torch.autograd.forward_ad.make_dual(x, x))

            yield f"dual {at}", dual
            yield f"requires_grad {at}", lambda one=one, x=x: one(x.clone().requires_grad_())


@each_op
@pytest.mark.parametrize("backend", ["torch", "port"])
def test_transforms_are_refused_by_name(op, backend):
    call, names, tensors = function(op)
    with registered(Narrow("port", op=OPS[op])):
        with hub.use_backend("torch"):
            call(*tensors)  # known before: refused all the same
        for name, transformed in transforms(call, tensors):
            with hub.use_backend(backend):
                with pytest.raises(InvalidRequestError) as caught:
                    transformed()
                at = int(name.split()[-1])
                assert caught.value.argument.split(".")[0] == names[at], name


@each_op
def test_tensors_of_no_use_are_refused_by_name(op):
    call, names, tensors = function(op)

    class DTensor(torch.Tensor):
        pass

    def nested(x):
        return torch.nested.nested_tensor([x, x])

    def jagged(x):
        return torch.nested.nested_tensor([x, x], layout=torch.jagged)

    kinds = (nested, jagged, lambda x: x.to_sparse(), lambda x: x.as_subclass(DTensor))
    for at, x in enumerate(tensors):
        for kind in kinds:
            with pytest.raises(InvalidRequestError) as caught:
                call(*tensors[:at], kind(x), *tensors[at + 1 :])
            assert caught.value.argument.split(".")[0] == names[at]
            assert len(str(caught.value)) < 400


@each_op
def test_tensors_of_inference_mode_are_ordinary_inputs_and_outputs(op):
    call, names, tensors = function(op)
    want = call(*tensors)
    with torch.inference_mode():
        made = [x.clone() for x in tensors]
        inside = call(*made)
        out = torch.zeros_like(want[0])
    for got in (inside, call(*made)):
        assert all(map(torch.equal, got, want))
    public, make = CALLS[op]
    got = public(**{**make(), **dict(zip(names, made, strict=True))}, out=out)
    assert got[0] is out
    assert torch.equal(out, want[0])


@each_op
@pytest.mark.parametrize("backend", ["torch", "port"])
def test_lazily_negated_views_are_resolved_before_a_backend_sees_them(op, backend):
    call, _, tensors = function(op)
    want = call(*tensors)
    wide = {"q_strides": ("packed", "token_strided"), "topk": ANY, "topk_length": True,
            "attn_sink": True}  # fmt: skip
    facts = wide if op != "dense" else {}
    port = Narrow("port", op=OPS[op], **facts)
    with registered(port), hub.use_backend(backend):
        for at, x in enumerate(tensors):
            for _ in range(2):
                view = torch._neg_view(-x)
                got = call(*tensors[:at], view, *tensors[at + 1 :])
                assert all(map(torch.equal, got, want)), at
    given = [x for one in port.calls for x in one if isinstance(x, torch.Tensor)]
    assert not any(x.is_neg() for x in given)


def test_a_negated_out_gets_the_right_signs():
    args = dense()
    want = hub.flash_mla_with_kvcache(**args)
    out, lse = torch._neg_view(torch.zeros(2, 1, 4, 512)), torch._neg_view(torch.zeros(2, 4, 1))
    hub.flash_mla_with_kvcache(**args, out=out, lse_out=lse)
    assert torch.equal(out, want[0])
    assert torch.equal(lse, want[1])

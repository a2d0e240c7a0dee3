"""What a SchedMeta's fast path must not skip: every parameter, changed alone, is looked at."""

from __future__ import annotations

import inspect

import pytest
import torch
from core_helpers import Narrow, dense, sparse

import flashmla_hub as hub
from flashmla_hub.testing import registered

INDICES = sparse()["indices"]


def cut(x: torch.Tensor) -> torch.Tensor:
    """The values of ``x`` with other strides."""
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The values of ``x`` at an address that is no multiple of 16 bytes."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def reseated(name: str, into: torch.Tensor):
    """Changes the tensor of the call itself: the same object with other facts."""

    def change(args):
        args[name].data = into
        return args

    return change


def lengths_of_another_type(args):
    args["cache_seqlens"].data = args["cache_seqlens"].float()
    return args


def table_turned(args):
    args["block_table"].t_()
    return args


# parameter: {what: its changed value, or a function of the call's arguments that changes them}
CHANGES = {
    "q": {
        "values": lambda a: a | {"q": -a["q"]},
        "heads": lambda a: a | {"q": a["q"][:, :, :2]},
        "strides": lambda a: a | {"q": cut(a["q"])},
        "address": lambda a: a | {"q": shifted(a["q"])},
        "grad": lambda a: a | {"q": a["q"].clone().requires_grad_()},
        "negated": lambda a: a | {"q": torch._neg_view(a["q"])},
        "a parameter": lambda a: a | {"q": torch.nn.Parameter(a["q"], requires_grad=False)},
        "a list": [1.0],
        "dtype": lambda a: a | {"q": a["q"].double()},
    },
    "k_cache": {
        "values": lambda a: a | {"k_cache": -a["k_cache"]},
        "strides": lambda a: a | {"k_cache": cut(a["k_cache"])},
        "address": lambda a: a | {"k_cache": shifted(a["k_cache"])},
        "grad": lambda a: a | {"k_cache": a["k_cache"].clone().requires_grad_()},
        "negated": lambda a: a | {"k_cache": torch._neg_view(a["k_cache"])},
        "dtype": lambda a: a | {"k_cache": a["k_cache"].bfloat16()},
    },
    "block_table": {
        "another": lambda a: a | {"block_table": a["block_table"].flip(0)},
        "re-seated": reseated("block_table", torch.tensor([[0, 1], [2, 3]])),
        "wider": reseated("block_table", torch.arange(8, dtype=torch.int32).view(2, 4) % 6),
        "turned": table_turned,
    },
    "cache_seqlens": {
        "another": torch.tensor([3, 4], dtype=torch.int32),
        "re-seated": lengths_of_another_type,
        "longer": reseated("cache_seqlens", torch.tensor([3, 4, 5], dtype=torch.int32)),
    },
    "head_dim_v": {"other": 256, "float": 512.0, "bool": True},
    "tile_scheduler_metadata": {"text": "meta", "float tensor": torch.zeros(1, 8)},
    "num_splits": {"anything": torch.zeros(3, dtype=torch.int32)},
    "softmax_scale": {"other": 0.5, "bool": True, "text": "1", "huge": 10**400, "large": 1e300},
    "causal": {"set": True, "int": 1, "zero": 0, "tensor": torch.tensor([False, False])},
    "is_fp8_kvcache": {"set": True, "unset": False, "zero": 0},
    "indices": {"given": torch.cat([INDICES, INDICES], 1)},
    "attn_sink": {"given": torch.zeros(4)},
    "extra_k_cache": {"given": torch.zeros(1, 8, 1, 576)},
    "extra_indices_in_kvcache": {"given": INDICES},
    "topk_length": {"given": torch.tensor([1, 2], dtype=torch.int32)},
    "extra_topk_length": {"given": torch.tensor([1, 2], dtype=torch.int32)},
    "out": {"given": lambda a: a | {"out": torch.zeros(2, 2, 4, 512)}, "wrong": torch.zeros(3)},
    "lse_out": {"given": lambda a: a | {"lse_out": torch.zeros(2, 4, 2)}, "wrong": torch.zeros(3)},
    "backend": {"other": "other", "unknown": "no_such_backend", "number": 3},
    "batch_invariant": {"set": True, "int": 1, "zero": 0},
    "check_values": {"set": True, "tensor": torch.tensor([True, True]), "int": 1},
    "kv_format": {"layout": "v32", "dense": "dense", "number": 3},
    "enable_batch_invariant": {"set": True, "tensor": torch.tensor([True, True])},
    "use_legacy": {"set": True, "number": 1},
    "descale_q": {"given": torch.ones(1), "number": 1.0},
    "descale_k": {"given": torch.ones(1), "number": 1.0},
    "indexer_topk": {"set": 5, "bool": False, "tensor": torch.zeros(2)},
}


def test_every_parameter_has_a_row():
    assert list(CHANGES) == list(inspect.signature(hub.flash_mla_with_kvcache).parameters)


def outcome(args, ports):
    """What a call gives: its values and who computed them, or its error."""
    for port in ports:
        port.calls.clear()
    try:
        out, lse = hub.flash_mla_with_kvcache(**args)
    except hub.FlashMLAHubError as error:
        return type(error), str(error)
    given = args.get("out") is out, args.get("lse_out") is lse
    by = [(port.name, len(port.calls)) for port in ports]
    return out.tolist(), lse.tolist(), given, by


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, values in CHANGES.items() for what in values]
)
def test_a_changed_parameter_takes_the_path_it_must(name, what):
    def arguments():
        args = dense(s_q=2, lens=[900, 9])  # a length past the table: check_values refuses it
        return args | {"causal": False, "batch_invariant": False}

    ports = (Narrow("fast", rank=99, q_strides=("packed", "token_strided")),
             Narrow("steady", rank=20, batch_invariant=True), Narrow("other", rank=1))  # fmt: skip
    with registered(ports[0]), registered(ports[1]), registered(ports[2]):
        base = arguments()
        meta, _ = hub.get_mla_metadata()
        hub.flash_mla_with_kvcache(**base, tile_scheduler_metadata=meta)
        assert meta.fast is not None
        changed = change(base, name, what)
        changed.setdefault("tile_scheduler_metadata", meta)
        got = outcome(changed, ports)
        meta.fast = None
        fresh = change(arguments(), name, what)
        fresh.setdefault("tile_scheduler_metadata", meta)
        assert got == outcome(fresh, ports)


def change(args, name, what):
    value = CHANGES[name][what]
    return value(args) if callable(value) else args | {name: value}


def test_the_fast_path_is_taken_by_the_layers_of_a_step(monkeypatch):
    from flashmla_hub import calls

    args = dense()
    meta, _ = hub.get_mla_metadata()
    hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)
    monkeypatch.setattr(calls, "prepare", lambda *_: pytest.fail("the general path"))
    for _ in range(2):
        args["q"], args["k_cache"] = args["q"].clone(), args["k_cache"].clone()
        hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)

"""The public call: results, empty rows, outputs in place, metadata of every generation."""

from __future__ import annotations

import oracle
import pytest
import torch
from core_helpers import Narrow, dense, sparse

import flashmla_hub as hub
from flashmla_hub import InvalidRequestError
from flashmla_hub.testing import registered


def test_result_is_what_the_oracle_says():
    args = dense(batch=3, s_q=2, h_q=6, h_kv=2, lens=[20, 1, 0])
    out, lse = hub.flash_mla_with_kvcache(**args, causal=True)
    expected = oracle.dense_decode(
        args["q"], args["k_cache"], args["block_table"], args["cache_seqlens"], d_v=512,
        softmax_scale=576**-0.5, causal=True,
    )  # fmt: skip
    oracle.check(out, lse, expected)


def test_batch_0_and_width_0_need_no_backend():
    args = dense()
    port = Narrow(rank=99)
    with registered(port):
        out, lse = hub.flash_mla_with_kvcache(**{**args, "block_table": torch.zeros(2, 0).int()})
        assert not out.any()
        assert lse.isposinf().all()
        none = {k: v[:0] for k, v in args.items() if k in ("q", "block_table", "cache_seqlens")}
        out, lse = hub.flash_mla_with_kvcache(**{**args, **none})
        assert out.shape == (0, 1, 4, 512)
        assert lse.shape == (0, 4, 1)
    assert not port.calls


def test_topk_0_needs_no_backend():
    out, lse = hub.flash_mla_with_kvcache(**sparse(topk=0))
    assert not out.any()
    assert lse.isposinf().all()


@pytest.mark.parametrize("strided", [False, True])
def test_out_and_lse_out_are_written_in_place(strided):
    args = dense()
    out = torch.full((2, 1, 4, 1024), float("nan"))[..., :: 2 if strided else 1][..., :512]
    lse = torch.full((2, 4, 2), float("nan"))[..., :1]
    got = hub.flash_mla_with_kvcache(**args, out=out, lse_out=lse)
    want = hub.flash_mla_with_kvcache(**args)
    assert got[0] is out
    assert got[1] is lse
    assert torch.equal(out, want[0])
    assert torch.equal(lse, want[1])


METADATA = {
    "none": lambda lens: hub.get_mla_metadata(),
    "generation 1, by position": lambda lens: hub.get_mla_metadata(lens, 4, 1),
    "generation 1, by keyword": lambda lens: hub.get_mla_metadata(
        cache_seqlens=lens, num_heads_per_head_k=4, num_heads_k=1
    ),
    "generation 2, by position": lambda lens: hub.get_mla_metadata(lens, 4, 1, 4, False, None),
    "generation 2, by keyword": lambda lens: hub.get_mla_metadata(
        lens, num_q_tokens_per_head_k=4, num_heads_k=1, num_heads_q=4, is_fp8_kvcache=False,
        topk=None,
    ),
    "tensors": lambda lens: hub.get_mla_metadata(lens, 4, 1, as_tensors=True),
}  # fmt: skip


@pytest.mark.parametrize("form", METADATA)
def test_metadata_of_every_generation(form):
    args = dense()
    meta, splits = METADATA[form](args["cache_seqlens"])
    want = hub.flash_mla_with_kvcache(**args)
    for _ in range(3):
        out, lse = hub.flash_mla_with_kvcache(
            args["q"], args["k_cache"], args["block_table"], args["cache_seqlens"], 512, meta,
            splits, softmax_scale=None, causal=False,
        )  # fmt: skip
        assert torch.equal(out, want[0])
        assert torch.equal(lse, want[1])


def test_tensor_metadata_survives_being_copied_into_fixed_buffers():
    lens = dense()["cache_seqlens"]
    rows, splits = hub.get_mla_metadata(lens, 4, 1, as_tensors=True)
    assert rows.shape == (1, 8)
    assert splits.tolist() == [0, 1, 2]
    assert rows.dtype == splits.dtype == torch.int32
    buffer = torch.zeros_like(rows)
    buffer.copy_(rows)
    hub.flash_mla_with_kvcache(**dense(), tile_scheduler_metadata=buffer, num_splits=splits)


@pytest.mark.parametrize(
    "call",
    [
        lambda: hub.get_mla_metadata(1, 2, 3, 4, 5, 6, 7),
        lambda: hub.get_mla_metadata(sequence_lengths=None),
        lambda: hub.get_mla_metadata(torch.zeros(2), cache_seqlens=torch.zeros(2)),
        lambda: hub.get_mla_metadata(as_tensors=True),
        lambda: hub.get_mla_metadata([1, 2]),
    ],
)
def test_metadata_refuses_what_no_generation_has(call):
    with pytest.raises(InvalidRequestError):
        call()


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"batch": 3}, "batch"), ({"s_q": 2}, "s_q"), ({"h_q": 8}, "h_q"), ({"page": 16}, "page")],
)
def test_metadata_is_bound_to_its_first_shape(changes, field):
    meta, _ = hub.get_mla_metadata()
    hub.flash_mla_with_kvcache(**dense(), tile_scheduler_metadata=meta)
    with pytest.raises(InvalidRequestError, match=rf"tile_scheduler_metadata \({field}"):
        hub.flash_mla_with_kvcache(**dense(**changes), tile_scheduler_metadata=meta)


def test_fast_path_serves_the_layers_of_a_step_and_follows_what_changes_in_place():
    args = dense(lens=[20, 9])
    meta, _ = hub.get_mla_metadata()
    for layer in range(3):
        args["q"] = torch.randn(2, 1, 4, 576)
        args["k_cache"] = torch.randn(6, 8, 1, 576)
        args["cache_seqlens"] += 1
        got = hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)
        want = hub.flash_mla_with_kvcache(**args)
        assert torch.equal(got[0], want[0]), layer
        assert torch.equal(got[1], want[1]), layer


def test_fast_path_takes_what_differs_the_long_way():
    args = dense()
    meta, _ = hub.get_mla_metadata()
    hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)
    for changes in (
        {"softmax_scale": 0.5},
        {"cache_seqlens": torch.tensor([3, 4], dtype=torch.int32)},
        {"block_table": args["block_table"].flip(0)},
        {"q": torch.randn(2, 1, 4, 600)[..., :576]},
    ):
        changed = {**args, **changes}
        got = hub.flash_mla_with_kvcache(**changed, tile_scheduler_metadata=meta)
        want = hub.flash_mla_with_kvcache(**changed)
        assert torch.equal(got[0], want[0]), changes
    other = Narrow("other", rank=99)
    with registered(other), hub.use_backend("other"):
        hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta)
    assert len(other.calls) == 1


class Planner(Narrow):
    """A port that plans on the host, by lengths."""

    def __init__(self):
        super().__init__("planner", hazards=("plans_per_metadata",))
        self.planned = []

    def bind(self, key, device):
        kernel = super().bind(key, device)
        inner, planned = kernel.kernel, self.planned

        class Planned(type(kernel)):
            plans = True

            def plan(self, block_table, cache_seqlens):
                planned.append(cache_seqlens.tolist())
                return cache_seqlens.clone()

            def run(self, call):
                return inner.run(call._replace(cache_seqlens=call.plan, plan=None))

        return Planned(inner, self.calls, self.finish)


def test_a_plan_by_lengths_is_made_again_when_lengths_change_in_place():
    args, port = dense(lens=[20, 9]), Planner()
    meta, _ = hub.get_mla_metadata()
    with registered(port):
        for _ in range(2):
            hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta, backend="planner")
        assert port.planned == [[20, 9]]
        args["cache_seqlens"].copy_(torch.tensor([3, 4]))
        got = hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta, backend="planner")
        assert port.planned == [[20, 9], [3, 4]]
        args["cache_seqlens"] = torch.tensor([3, 4], dtype=torch.int32)
        hub.flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta, backend="planner")
        assert len(port.planned) == 3
    want = hub.flash_mla_with_kvcache(**args)
    assert torch.equal(got[0], want[0])

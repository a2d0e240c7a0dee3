"""Random calls, valid and not: each is right, or refused with one of the public errors.

PYTHONPATH=tests python tests/core/test_random_calls.py 10000 [SEED]      the long run
"""

from __future__ import annotations

import math
import sys
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import flashmla_hub as hub

REFUSALS = (hub.InvalidRequestError, hub.NotSupportedError, hub.NoBackendError, hub.PluginError)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """The arguments of a call that is mostly right, and now and then wrong in one or two ways."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    batch, s_q = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    h_kv = pick(1, 1, 1, 2, 3)
    h_q = h_kv * draw(st.integers(1, 5))
    d_qk, d_v = pick((576, 512), (576, 512), (512, 512), (320, 256))
    page, width = pick(1, 2, 8, 16, 64), draw(st.integers(0, 3))
    dtype = pick(*DTYPES)
    seed = draw(st.integers(0, 2**20))
    g = torch.Generator().manual_seed(seed)
    pages = max(batch * width, 1) + 1
    table = torch.randperm(pages, generator=g)[: batch * width].view(batch, width).int()
    lens = [draw(st.integers(-1, page * width + 1)) for _ in range(batch)]
    call: dict[str, Any] = {
        "q": torch.randn(batch, s_q, h_q, d_qk, generator=g).to(dtype),
        "k_cache": torch.randn(pages, page, h_kv, d_qk, generator=g).to(dtype),
        "block_table": table,
        "cache_seqlens": torch.tensor(lens, dtype=torch.int32),
        "head_dim_v": d_v,
        "causal": pick(False, True),
        # no larger: a sink would push out below what float16 can hold, and its cosine is 0/0
        "softmax_scale": pick(None, None, 0.05, 0.1, -0.1),
    }
    if pick(True, False, False):
        call["tile_scheduler_metadata"] = hub.get_mla_metadata()[0]
    if pick(True, False, False):
        topk = draw(st.integers(0, 9))
        call["indices"] = torch.randint(-2, pages * page + 2, (batch, s_q, topk), generator=g).int()
        call["causal"] = False
        call["block_table"] = call["cache_seqlens"] = None
        if pick(True, False):
            call["attn_sink"] = torch.randn(h_q, generator=g)
        if pick(True, False):
            call["topk_length"] = torch.randint(0, topk + 2, (batch,), generator=g).int()
    # beside a sink, a nonsense scale that happens to be a number is such a larger one
    kept = {"tile_scheduler_metadata", *(["softmax_scale"] if "attn_sink" in call else [])}
    for _ in range(pick(0, 0, 1, 2)):
        name = pick(*[n for n in call if n not in kept])
        call[name] = draw(spoilt(call[name]))
    return call


def spoilt(value: Any) -> st.SearchStrategy[Any]:
    """``value`` made wrong, or unusual."""
    nonsense = st.sampled_from([None, "text", -1, 0, math.nan, math.inf, [1, 2], 3.5, True, {}])
    if not isinstance(value, torch.Tensor) or value.is_sparse:  # sparse ones have no strides
        return nonsense
    changes = [
        lambda t: t.double() if t.is_floating_point() else t.long(),
        lambda t: t.unsqueeze(0),
        lambda t: t[..., :-1] if t.shape[-1] else t,
        lambda t: t.transpose(0, -1),
        lambda t: t.to("meta"),
        lambda t: t[:1],
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
        lambda t: t.to(torch.uint8),
        lambda t: t.to_sparse() if t.dim() == 1 and t.device.type == "cpu" else t,
    ]
    return st.one_of(nonsense, st.sampled_from(changes).map(lambda change: change(value)))


def expected(call: dict[str, Any]) -> oracle.Expected:
    scale = call["softmax_scale"]
    facts = {
        "d_v": call["head_dim_v"],
        "softmax_scale": call["q"].shape[-1] ** -0.5 if scale is None else scale,
    }
    if call.get("indices") is None:
        tensors = (call[n] for n in ("q", "k_cache", "block_table", "cache_seqlens"))
        return oracle.dense_decode(*tensors, causal=call["causal"], **facts)
    optional = {n: call.get(n) for n in ("topk_length", "attn_sink")}
    return oracle.sparse_decode(call["q"], call["k_cache"], call["indices"], **facts, **optional)


def right_or_refused(call: dict[str, Any]) -> str:
    """'right' or the name of the refusal; anything else raises."""
    if names_absent_pages(call):
        return "undefined"  # C1.15: values on the device are not checked
    before = {n: v.clone() for n, v in call.items() if isinstance(v, torch.Tensor)}
    try:
        out, lse = hub.flash_mla_with_kvcache(**call)
    except REFUSALS as refusal:
        return type(refusal).__name__
    if out.device.type == "meta":
        return "meta"
    if out.numel():
        oracle.check(out, lse, expected(call), {n: describe(v) for n, v in call.items()})
    for name, value in before.items():
        if value.device.type != "meta":
            assert torch.equal(value, call[name]), f"{name} was changed"
    return "right"


def names_absent_pages(call: dict[str, Any]) -> bool:
    """Does a row use a page that a spoilt cache or table no longer has?"""
    table, lens, cache = (call[n] for n in ("block_table", "cache_seqlens", "k_cache"))
    if not all(
        isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in (table, lens, cache)
    ):
        return False
    if table.dim() != 2 or lens.shape != table.shape[:1] or cache.dim() != 4 or not cache.shape[1]:
        return False
    pages = (lens.to_dense().clamp(min=0) + cache.shape[1] - 1) // cache.shape[1]
    used = torch.arange(table.shape[1]) < pages.unsqueeze(1)
    return bool((used & ((table < 0) | (table >= cache.shape[0]))).any())


def describe(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (
        (tuple(value.shape), value.stride(), value.dtype) if value.numel() > 8 else value.tolist()
    )


BASE = {
    "q": torch.zeros(1, 1, 1, 576), "k_cache": torch.zeros(1, 1, 1, 576),
    "block_table": torch.zeros(1, 1).int(), "cache_seqlens": torch.ones(1).int(),
    "head_dim_v": 512, "causal": False, "softmax_scale": None,
}  # fmt: skip


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(call=calls())
@example(call={**BASE, "causal": 3.5})
@example(call={**BASE, "softmax_scale": {}})
def test_a_random_call_is_right_or_refused(call):
    right_or_refused(call)


@pytest.mark.full
def test_many_random_calls():
    assert sum(long_run(10_000, 0).values()) >= 10_000


def long_run(examples: int, seed: int) -> dict[str, int]:
    """{outcome: how often} of that many examples."""
    import hypothesis

    outcomes: dict[str, int] = {}

    @hypothesis.seed(seed)
    @settings(max_examples=examples, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(call=calls())
    def many(call: dict[str, Any]) -> None:
        outcome = right_or_refused(call)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    many()
    return outcomes


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]] or [10_000]
    print(long_run(words[0], words[1] if len(words) > 1 else 0))

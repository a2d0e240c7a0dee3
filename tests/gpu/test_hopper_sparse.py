"""Hopper's kernel over lists, against the float64 oracle: entries that are not there, two caches,
sinks, pages and strides of any kind, the largest logit, equal bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import oracle
import pytest
import torch
from gpu_cases import needs_hopper
from torch import Tensor

import flashmla_hub

D_V = 512

pytestmark = [pytest.mark.gpu, needs_hopper]


@dataclass(frozen=True)
class Lists:
    """A call; ``extra`` is (topk, page size) of a second cache, ``counted`` gives topk_length."""

    batch: int = 3
    s_q: int = 1
    h_q: int = 128
    topk: int = 1000
    d_qk: int = 576
    dtype: torch.dtype = torch.bfloat16
    page: int = 64
    gap: int = 0
    extra: tuple[int, int] | None = None
    counted: bool = False
    sink: bool = False
    seed: int = 0

    def drawn(self, *shape: int, step: int) -> Tensor:
        g = torch.Generator("cuda").manual_seed(self.seed * 100 + step)
        x = torch.randn(*shape, generator=g, device="cuda", dtype=self.dtype)
        return x.div_(10).clamp_(-1, 1)

    def cache(self, page: int, step: int) -> Tensor:
        pool = self.drawn(-(-2500 // page), page + self.gap, 1, self.d_qk, step=step)
        return pool[:, :page]

    def lists(self, cache: Tensor, topk: int, step: int) -> Tensor:
        """A fifth of the entries is invalid, whole heads of lists and the first list included;
        what no entry names becomes NaN in the cache."""
        g = torch.Generator("cuda").manual_seed(self.seed * 100 + step)
        tokens = cache.shape[0] * cache.shape[1]
        shape = (self.batch, self.s_q, topk)
        entries = torch.randint(1, tokens, shape, generator=g, device="cuda", dtype=torch.int32)
        luck = torch.rand(shape, generator=g, device="cuda")
        for below, value in ((0.2, -1), (0.1, tokens), (0.05, -(2**31)), (0.02, 2**31 - 1)):
            entries[luck < below] = value
        entries[0, 0] = -1
        entries[-1, -1, : topk // 2] = -1
        used = torch.zeros(tokens, dtype=torch.bool, device="cuda")
        used[entries[(entries >= 0) & (entries < tokens)].long()] = True
        cache[~used.view(cache.shape[:2])] = math.nan
        return entries

    def counts(self, topk: int, step: int) -> Tensor | None:
        if not self.counted:
            return None
        g = torch.Generator("cuda").manual_seed(self.seed * 100 + step)
        found = torch.randint(-1, topk + 3, (self.batch,), generator=g, device="cuda")
        return found.int()


CASES = [
    Lists(),
    Lists(batch=70, s_q=2, h_q=64, topk=128, d_qk=512, extra=(512, 2), counted=True, sink=True),
    Lists(batch=2, s_q=3, h_q=12, topk=513, page=61, gap=3, dtype=torch.float16, sink=True),
    Lists(batch=1, h_q=200, topk=4000, counted=True, sink=True, seed=1),
    Lists(batch=5, h_q=8, topk=1, d_qk=512, extra=(1, 53), gap=1, seed=2),
    Lists(batch=300, h_q=16, topk=70, counted=True, extra=(65, 64), seed=3),
]


def decode(
    case: Lists, batch_invariant: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, object]]:
    q = case.drawn(case.batch, case.s_q, case.h_q, case.d_qk, step=0)
    cache = case.cache(case.page, step=1)
    indices = case.lists(cache, case.topk, step=2)
    options: dict[str, object] = {"topk_length": case.counts(case.topk, step=3)}
    if case.extra:
        topk, page = case.extra
        more = case.cache(page, step=4)
        options["extra_k_cache"] = more
        options["extra_indices_in_kvcache"] = case.lists(more, topk, step=5)
        options["extra_topk_length"] = case.counts(topk, step=6)
    if case.sink:
        options["attn_sink"] = torch.linspace(-2, 6, case.h_q, device="cuda")
    options = {name: value for name, value in options.items() if value is not None}
    meta, _ = flashmla_hub.get_mla_metadata()
    out, lse = flashmla_hub.flash_mla_with_kvcache(
        q, cache, None, None, D_V, meta, None, indices=indices, backend="hopper",
        batch_invariant=batch_invariant, **options,
    )  # fmt: skip
    return out, lse, (q, cache, indices), options


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_sparse_decode(case: Lists, batch_invariant: bool) -> None:
    out, lse, (q, cache, indices), options = decode(case, batch_invariant)
    options["extra_indices"] = options.pop("extra_indices_in_kvcache", None)
    expected = oracle.sparse_decode(
        q, cache, indices, d_v=D_V, softmax_scale=case.d_qk**-0.5, kv_format="dense", **options
    )
    oracle.check(out, lse, expected, case)


def test_the_bits_are_the_same_each_time() -> None:
    case = Lists(batch=37, topk=2048, counted=True, sink=True)
    first: tuple[Tensor, ...] = ()
    for i in range(100):
        found = decode(case)[:2]
        first = first or found
        assert all(map(torch.equal, first, found)), (i, case)


@pytest.mark.parametrize(
    ("queries", "h_q", "h_kv", "topk", "d_qk", "extras"),
    [
        (140, 128, 1, 257, 576, True),
        (3, 128, 1, 3000, 576, False),
        (600, 64, 1, 512, 512, True),
        (50, 24, 2, 130, 576, True),
        (9, 300, 3, 64, 512, False),
    ],
)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_sparse_prefill(
    queries: int, h_q: int, h_kv: int, topk: int, d_qk: int, extras: bool, batch_invariant: bool
) -> None:
    case = Lists(batch=queries, s_q=h_kv, d_qk=d_qk, counted=extras, seed=4)
    q = case.drawn(queries, h_q, d_qk, step=0)
    kv = case.drawn(2500, h_kv, d_qk, step=1)
    indices = case.lists(kv[:, :1].unsqueeze(1).clone(), topk, step=2)
    options: dict[str, object] = {}
    if extras:
        options["topk_length"] = case.counts(topk, step=3)
        options["attn_sink"] = torch.linspace(-2, 6, h_q, device="cuda")
    out, tops, lse = flashmla_hub.flash_mla_sparse_fwd(
        q, kv, indices, d_qk**-0.5, backend="hopper", batch_invariant=batch_invariant, **options
    )
    expected = oracle.sparse_prefill(q, kv, indices, d_v=D_V, softmax_scale=d_qk**-0.5, **options)
    facts = (queries, h_q, h_kv, topk, d_qk, extras, "seed 4")
    oracle.check(out.unsqueeze(1), lse.unsqueeze(2), expected, facts)
    top = expected.max_logits.squeeze(-1)
    assert torch.equal(tops.isneginf().cpu(), top.isneginf()), facts
    finite = top.isfinite()
    assert (tops.double().cpu() - top)[finite].abs().max() < 1e-4, facts


def test_replays_of_a_graph_follow_lists_changed_in_place() -> None:
    case = Lists(batch=20, topk=700, counted=True, sink=True, extra=(130, 2), d_qk=512)
    _, _, (q, cache, indices), options = decode(case)
    meta, _ = flashmla_hub.get_mla_metadata()

    def call() -> tuple[Tensor, Tensor]:
        return flashmla_hub.flash_mla_with_kvcache(
            q, cache, None, None, D_V, meta, None, indices=indices, backend="hopper", **options
        )

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = call()
    for step in range(3):
        indices.copy_(indices.roll(1, 0))
        options["topk_length"].copy_(options["topk_length"].roll(step, 0))
        graph.replay()
        expected_out, expected_lse = call()
        assert torch.equal(out, expected_out), step
        assert torch.equal(lse, expected_lse), step

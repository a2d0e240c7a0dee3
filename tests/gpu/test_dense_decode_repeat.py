"""Same bits: on every run, under delays, in other company, under replay, past 2^32 bytes."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from gpu_cases import (
    Case,
    check,
    decode,
    make,
    needs_hopper,
    oracle,
    random_lengths,
    same_bits,
)

from flashmla_hub import api
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.backends.hopper.variants import Variant
from flashmla_hub.call import DenseDecode
from flashmla_hub.request import KernelKey
from flashmla_hub.testing import bind_unchecked

pytestmark = [pytest.mark.gpu, needs_hopper]


def rows(t: SimpleNamespace, index: list[int], width: int | None = None) -> SimpleNamespace:
    """The same requests in another batch."""
    at = torch.tensor(index, device="cuda")
    table = t.table[at] if width is None else t.table[at, :width]
    return SimpleNamespace(
        case=t.case, cache=t.cache, q=t.q[at].contiguous(), table=table.contiguous(),
        lengths=t.lengths[at].contiguous(),
    )  # fmt: skip


SOAK = [
    Case(random_lengths(40, 5000, 1), h_q=128),
    Case(random_lengths(9, 5000, 2), h_q=16, s_q=2),
    Case(random_lengths(5, 5000, 3), h_q=32, page=1),
    Case((8192,), h_q=16),
]


@pytest.mark.parametrize("case", SOAK, ids=lambda c: f"b{len(c.lengths)}-h{c.h_q}-p{c.page}")
@pytest.mark.parametrize("invariant", [False, True])
def test_a_thousand_runs_give_one_bit_pattern(case: Case, invariant: bool) -> None:
    t = make(case)
    out, lse = decode(t, batch_invariant=invariant)
    check(out, lse, oracle(t), case)
    differing = torch.zeros((), device="cuda", dtype=torch.int64)
    for _ in range(1000):
        again, lse_again = decode(t, batch_invariant=invariant)
        differing += (again.view(torch.int16) != out.view(torch.int16)).any()
        differing += (lse_again.view(torch.int32) != lse.view(torch.int32)).any()
    assert differing.item() == 0


@pytest.mark.parametrize("page", [64, 16])
def test_delays_at_barriers_change_nothing(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose warps sleep for random times at barriers: phases, fences and ring hand-offs
    that hold by luck of timing do not survive it."""
    case = Case((1000, 65, 4097, 0, 63, 2000, 129), h_q=64, s_q=2, page=page)
    t = make(case)
    out, lse = decode(t)
    plain = Variant.decode.fget
    assert plain is not None

    def with_delays(self: Variant) -> object:
        unit = plain(self)
        return type(unit)(
            unit.name + "-delays", unit.source, (*unit.defines, "FMH_TEST_DELAYS=1"), unit.kernels
        )

    monkeypatch.setattr(Variant, "decode", property(with_delays))
    key = KernelKey(s_q=2, h_q=64, page_block_size=page, causal=True)
    kernel = bind_unchecked(HopperBackend(), key, api.resolve_device(torch.device("cuda")))
    slept, slept_lse = torch.empty_like(out), torch.empty_like(lse)
    for _ in range(1000):
        slept.fill_(7)
        scale = case.d_qk**-0.5
        kernel.run(DenseDecode(t.q, t.cache, t.table, t.lengths, scale, slept, slept_lse))
        assert same_bits(slept, out)
        assert same_bits(slept_lse, lse)


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 63, 1025, 2048, 0, 3000, 4096, 5000, 10000, 4097, 300, 8190), h_q=16),
        Case(random_lengths(40, 20000, 4), h_q=64, s_q=2),
        Case(random_lengths(9, 20000, 5), h_q=16, s_q=2, page=16),
        Case((70000, 131072, 100), h_q=128),
    ],
    ids=lambda c: f"b{len(c.lengths)}-h{c.h_q}-p{c.page}",
)
def test_batch_invariance(case: Case) -> None:
    """In order, shuffled, and every row alone on a table of its own width."""
    t = make(case)
    out, lse = decode(t, batch_invariant=True)
    check(out, lse, oracle(t), case)
    order = list(range(len(case.lengths)))
    random.Random(0).shuffle(order)
    mixed, mixed_lse = decode(rows(t, order), batch_invariant=True)
    assert same_bits(mixed, out[order])
    assert same_bits(mixed_lse, lse[order])
    for i, n in enumerate(case.lengths):
        alone, alone_lse = decode(rows(t, [i], max(1, -(-n // case.page))), batch_invariant=True)
        assert same_bits(alone, out[i : i + 1]), f"{case}: row {i}"
        assert same_bits(alone_lse, lse[i : i + 1]), f"{case}: row {i}"


def test_replay_with_changed_lengths_beside_eager_streams() -> None:
    """A graph replays with lengths, table and contents changed in place, a row going to 0 and
    back, while eager calls of the same shape run on two other streams."""
    case = Case((3000, 100, 64, 1, 2047, 700), h_q=64)
    t, other = make(case), make(Case(case.lengths, h_q=64, seed=9))
    decode(t)
    expected_other = decode(other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = decode(t)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    full = t.lengths.clone()
    fresh = make(Case(case.lengths, h_q=64, seed=5))
    for step in range(20):
        t.lengths.copy_(full)
        if step % 3 == 1:
            t.lengths[1] = 0
            t.lengths[0] -= 64 * step
        if step % 5 == 4:
            t.q.copy_(fresh.q)
            t.cache.copy_(fresh.cache)
            t.table.copy_(fresh.table)
        torch.cuda.synchronize()
        eager = []
        for stream in streams:
            with torch.cuda.stream(stream):
                eager.append(decode(other))
        graph.replay()
        torch.cuda.synchronize()
        check(out, lse, oracle(t), f"{case} step {step}")
        for got in eager:
            assert same_bits(got[0], expected_other[0])
            assert same_bits(got[1], expected_other[1])


@pytest.mark.parametrize("page", [64, 16])
def test_addresses_past_two_to_the_32_bytes(page: int) -> None:
    size = 9_000_000_000
    if torch.cuda.mem_get_info()[0] < size + 2**31:
        pytest.skip(f"needs {size + 2**31} bytes of free device memory")
    pages = size // (page * 1152)
    cache = torch.empty(pages, page, 1, 576, device="cuda", dtype=torch.bfloat16)
    cache.view(torch.int16).fill_(0x7FC0)  # NaN
    width = -(-3000 // page)
    table = torch.arange(pages - 2 * width, pages, device="cuda", dtype=torch.int32)
    table = table.view(2, width).flip(1).contiguous()
    table[0, ::2] -= pages // 2  # past 2^31 elements, not past 2^32
    g = torch.Generator("cuda").manual_seed(page)
    values = torch.randn(table.numel(), page, 1, 576, generator=g, device="cuda") * 0.1
    cache[table.view(-1).long()] = values.to(torch.bfloat16)
    q = (torch.randn(2, 1, 16, 576, generator=g, device="cuda") * 0.1).to(torch.bfloat16)
    lengths = torch.tensor([3000, 100], dtype=torch.int32, device="cuda")
    t = SimpleNamespace(
        case=Case((3000, 100), page=page), q=q, cache=cache, table=table, lengths=lengths
    )
    out, lse = decode(t)
    check(out, lse, oracle(t), f"page {page}")

"""Cases for kernels on the card: poisoned inputs, a float64 oracle on the device, one call.

A case carries its seed: ``str(case)`` in a failure is all that is needed to make it again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from oracle import Expected, check
from torch import Tensor

import flashmla_hub

D_V = 512
GARBAGE = (2147480000, -1)  # what the rest of a block_table row may hold


def hopper_reason() -> str:
    """Why these tests cannot run here, '' if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    status = [s for s in flashmla_hub.backends() if s.name == "hopper"]
    if not status or status[0].status != "ready":
        return f"hopper is not ready: {status[0].reason if status else 'not registered'}"
    return ""


def triton_reason() -> str:
    if not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    (status,) = (s for s in flashmla_hub.backends() if s.name == "triton")
    return "" if status.status == "ready" else f"triton is not ready: {status.reason}"


def _unless(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reason), reason=reason or "runs")


needs_hopper = _unless(hopper_reason())
needs_triton = _unless(triton_reason())


@dataclass(frozen=True)
class Case:
    """A dense decode call. ``lengths`` may hold negative ones and ones past the capacity."""

    lengths: tuple[int, ...]
    s_q: int = 1
    h_q: int = 16
    h_kv: int = 1
    d_qk: int = 576
    page: int = 64
    dtype: torch.dtype = torch.bfloat16
    causal: bool | None = None  # None: s_q > 1
    family: str = "flat"  # flat, peaked, extreme (contract C1.12)
    page_gap: int = 0  # elements between two pages of the pool
    token_gap: int = 0  # elements between two tokens of a page
    spare_heads: int = 0  # heads of the tensor that q is a slice of, past h_q
    poison: float = math.nan
    seed: int = 0

    @property
    def masked(self) -> bool:
        return self.s_q > 1 if self.causal is None else self.causal


def random_lengths(count: int, top: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randint(0, top) for _ in range(count))


def make(case: Case) -> SimpleNamespace:
    """Tensors of ``case`` on the current device: every slot no key uses holds ``poison``."""
    g = torch.Generator("cuda").manual_seed(case.seed)
    lengths = [max(n, 0) for n in case.lengths]
    pages = [-(-n // case.page) for n in lengths]
    total, width = sum(pages) + 7, max(1, *pages) + 3
    order = torch.randperm(total, generator=g, device="cuda").to(torch.int32)
    rest = GARBAGE[case.seed % 2]
    table = torch.full((len(lengths), width), rest, dtype=torch.int32, device="cuda")
    token = case.d_qk + case.token_gap
    row = case.page * case.h_kv * token
    pool = torch.full((total, row + case.page_gap), case.poison, device="cuda", dtype=case.dtype)
    shape = (total, case.page, case.h_kv, case.d_qk)
    cache = pool.as_strided(shape, (row + case.page_gap, case.h_kv * token, token, 1))
    deviation = 0.1 if case.family == "flat" else 1.0

    def fill(n: int) -> Tensor:
        x = torch.randn(n, *shape[1:], generator=g, device="cuda") * deviation
        if case.family == "flat":
            return x.clamp_(-1, 1)
        x[..., :D_V] += 0.5 if case.family == "peaked" else 0.0
        return x

    at = 0
    for b, n in enumerate(pages):
        ids = order[at : at + n]
        at += n
        table[b, :n] = ids
        if not n:
            continue
        cache[ids.long()] = fill(n).to(case.dtype)
        last, used = ids[-1].long(), (lengths[b] - 1) % case.page + 1
        if case.family == "extreme":
            cache[last, used - 1] *= 20  # one huge late token
        cache[last, used:] = case.poison
    heads = case.h_q + case.spare_heads
    q = torch.randn(len(lengths), case.s_q, heads, case.d_qk, generator=g, device="cuda")
    q = q * 0.1 if case.family == "flat" else q * (30.0 if case.family == "extreme" else 1.0)
    q = q.clamp_(-1, 1) if case.family == "flat" else q
    return SimpleNamespace(
        case=case,
        q=q.to(case.dtype)[:, :, : case.h_q],
        cache=cache,
        table=table,
        lengths=torch.tensor(case.lengths, dtype=torch.int32, device="cuda"),
    )


def oracle(t: SimpleNamespace) -> Expected:
    """float64 on the device, one request at a time, over the visible keys only."""
    case = t.case
    capacity = t.table.shape[1] * case.page
    group = case.h_q // case.h_kv
    shape = (len(t.lengths), case.s_q, case.h_q)
    out = torch.zeros(*shape, D_V, dtype=torch.float64)
    lse = torch.full((shape[0], case.h_q, case.s_q), math.inf, dtype=torch.float64)
    rms = torch.zeros_like(lse)
    for b, n in enumerate(t.lengths.tolist()):
        n = min(max(n, 0), capacity)
        if n == 0:
            continue
        ids = t.table[b, : -(-n // case.page)].long()
        k = t.cache[ids].reshape(-1, case.h_kv, case.d_qk)[:n].double()
        q = t.q[b].double().view(case.s_q, case.h_kv, group, case.d_qk)
        s = torch.einsum("qhgd,khd->hgqk", q, k) * case.d_qk**-0.5
        if case.masked:
            last = n - case.s_q + torch.arange(case.s_q, device="cuda")
            s = s.masked_fill(torch.arange(n, device="cuda") > last[:, None], -math.inf)
        z = torch.logsumexp(s, -1)
        empty = z == -math.inf
        p = torch.where(empty[..., None], 0.0, torch.exp(s - z[..., None]))
        o = torch.einsum("hgqk,khd->qhgd", p, k[..., :D_V])
        out[b] = o.reshape(case.s_q, case.h_q, D_V).cpu()
        lse[b] = torch.where(empty, math.inf, z).reshape(case.h_q, case.s_q).cpu()
        rms[b] = k[..., :D_V].pow(2).mean().sqrt().item()
    return Expected(out, lse, lse, rms)


def decode(t: SimpleNamespace, **options: object) -> tuple[Tensor, Tensor]:
    """The public call, outputs filled with NaN before it."""
    case = t.case
    shape = (len(t.lengths), case.s_q, case.h_q, D_V)
    out = torch.full(shape, math.nan, device="cuda", dtype=case.dtype)
    lse = torch.full((shape[0], case.h_q, case.s_q), math.nan, device="cuda")
    return flashmla_hub.flash_mla_with_kvcache(
        t.q, t.cache, t.table, t.lengths, D_V, causal=case.masked, backend="hopper",
        out=out, lse_out=lse, **options,
    )  # fmt: skip


def run_and_check(case: Case, **options: object) -> None:
    t = make(case)
    out, lse = decode(t, **options)
    check(out, lse, oracle(t), case, extreme=case.family == "extreme")


def same_bits(a: Tensor, b: Tensor) -> bool:
    view = torch.int16 if a.element_size() == 2 else torch.int32
    return torch.equal(a.contiguous().view(view), b.contiguous().view(view))

"""Seeded random calls over the whole contract, hostile where the contract allows it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import kv_format

GARBAGE = (2147480000, -1, -2147483648, 2147483647)
POISON = (float("nan"), float("inf"), float("-inf"))
DIMS = ((576, 512), (576, 512), (512, 512), (320, 256))


@dataclass
class Case:
    """Facts of one call; ``str()`` reproduces it."""

    seed: int
    dtype: torch.dtype = torch.bfloat16
    kv_format: str = "dense"
    lens: tuple[int, ...] = (64, 200)
    width: int = 0  # spare columns of the block table
    s_q: int = 1
    h_q: int = 16
    h_kv: int = 1
    page: int = 64
    d_qk: int = 576
    d_v: int = 512
    causal: bool = False
    strides: str = "packed"
    q_strided: bool = False
    shared: bool = False
    family: str = "peaked"
    topk: int = 0
    topk_length: bool = False
    sink: bool = False
    extra_topk: int = 0
    extra_page: int = 0
    rng: torch.Generator = field(init=False, repr=False)
    choice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rng = torch.Generator().manual_seed(self.seed)
        self.choice = random.Random(self.seed)

    def __str__(self) -> str:
        shown = (f for f in fields(self) if f.init and getattr(self, f.name) != f.default)
        return f"Case({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def scale(self) -> float:
        return self.d_qk**-0.5

    def values(self, *shape: int) -> Tensor:
        x = torch.randn(*shape, generator=self.rng)
        if self.family == "flat":
            x = (x / 10).clamp(-1, 1)
        return x

    def queries(self, *shape: int) -> Tensor:
        x = self.values(*shape).to(self.dtype)
        if not self.q_strided:
            return x
        wide = torch.full((*shape[:-1], shape[-1] + 24), float("nan"), dtype=self.dtype)
        wide[..., : shape[-1]] = x
        return wide[..., : shape[-1]]

    def pool(self, pages: int, page: int) -> Tensor:
        """A cache of poison; ``fill`` writes tokens into it."""
        if self.kv_format != "dense":
            layout = kv_format.get(self.kv_format)
            if self.strides == "packed":
                blank = torch.zeros(pages, page, 1, layout.d_qk, dtype=torch.bfloat16)
                cache = kv_format.quantize(blank, self.kv_format)
            else:
                stride = layout.page_stride(page) + 576 * self.choice.randint(1, 3)
                raw = torch.empty(pages, stride, dtype=torch.uint8)
                raw = raw[:, : page * layout.bytes_per_token]
                cache = raw.unflatten(1, (page, 1, layout.bytes_per_token)).view(
                    torch.float8_e4m3fn
                )
            cache.view(torch.uint8).fill_(0xFF)  # NaN as e4m3, ue8m0, float32 and bfloat16
            return cache
        spare_tokens = {"packed": 0, "page_strided": 3, "token_strided": 1}[self.strides]
        spare_dims = 40 if self.strides == "token_strided" else 0
        shape = (pages, page + spare_tokens, self.h_kv, self.d_qk + spare_dims)
        poison = self.choice.choice(POISON)
        return torch.full(shape, poison, dtype=self.dtype)[:, :page, :, : self.d_qk]

    def fill(self, cache: Tensor, slots: Tensor) -> None:
        """Give every slot of ``slots`` a token."""
        rows = self.values(len(slots), cache.shape[2], self.d_qk)
        rows[..., : self.d_v] += self.values(1, 1, self.d_v) * 0.5
        if self.kv_format != "dense":
            kv_format.append(cache, rows, slots, layout=self.kv_format)
        else:
            cache[slots // cache.shape[1], slots % cache.shape[1]] = rows.to(self.dtype)


def dense_inputs(case: Case) -> dict[str, Any]:
    """q, k_cache, block_table and cache_seqlens; all that is not a visible token is poison."""
    needed = [-(-n // case.page) for n in case.lens]
    width = max(needed) + case.width
    pages = sum(needed) + 3
    order = torch.randperm(pages, generator=case.rng).tolist()
    table = torch.empty(len(needed), width, dtype=torch.int32)
    slots: list[int] = []
    rows: list[list[int]] = []
    for b, n in enumerate(needed):
        own = [order.pop() for _ in range(n)]
        if case.shared and rows:  # a common prefix, of pages both rows fill
            common = min(case.lens[b], case.lens[b - 1]) // case.page
            own[:common] = rows[-1][:common]
        rows.append(own)
        for j in range(width):
            table[b, j] = own[j] if j < n else case.choice.choice(GARBAGE)
        slots += [own[j // case.page] * case.page + j % case.page for j in range(case.lens[b])]
    cache = case.pool(pages, case.page)
    case.fill(cache, torch.tensor(sorted(set(slots)), dtype=torch.int64))
    if case.width % 2:
        wide = torch.full((len(needed), width + 5), -7, dtype=torch.int32)
        wide[:, :width] = table
        table = wide[:, :width]
    return {
        "q": case.queries(len(needed), case.s_q, case.h_q, case.d_qk),
        "k_cache": cache,
        "block_table": table,
        "cache_seqlens": torch.tensor(case.lens, dtype=torch.int32),
    }


def _slot_lists(case: Case, shape: tuple[int, ...], tokens: int) -> Tensor:
    """Slots of a third of the cache, with duplicates, invalid entries and lists of only those."""
    third = torch.randperm(tokens, generator=case.rng)[: max(tokens // 3, 1)]
    pick = torch.randint(len(third), shape, generator=case.rng)
    slots = third[pick].int()
    invalid = torch.tensor([-1, tokens, *GARBAGE], dtype=torch.int32)
    dead = torch.rand(shape, generator=case.rng) < 0.2
    dead |= torch.rand((*shape[:-1], 1), generator=case.rng) < 0.15
    which = torch.randint(len(invalid), shape, generator=case.rng)
    return torch.where(dead, invalid[which], slots)


def _length(case: Case, rows: int, topk: int) -> Tensor | None:
    if not case.topk_length:
        return None
    lengths = [case.choice.choice((0, 1, topk // 2, topk, topk + 5, -3)) for _ in range(rows)]
    return torch.tensor(lengths, dtype=torch.int32)


def _sink(case: Case) -> Tensor | None:
    if not case.sink:
        return None
    # Above 4, out shrinks to where float16 has too few digits left for a cosine.
    sink = (torch.randn(case.h_q, generator=case.rng) * 3).clamp(max=4)
    sink[0] = float("inf")
    sink[-1] = float("-inf")
    return sink


def _counted(indices: Tensor, length: Tensor | None, tokens: int) -> Tensor:
    entry = torch.arange(indices.shape[-1])
    alive = (indices >= 0) & (indices < tokens)
    if length is not None:
        alive &= entry < length[:, None, None]
    return indices[alive].unique().long()


def sparse_inputs(case: Case) -> dict[str, Any]:
    """The arguments of a sparse decode call; slots that no entry counts are poison."""
    batch = len(case.lens)
    inputs: dict[str, Any] = {"q": case.queries(batch, case.s_q, case.h_q, case.d_qk)}
    names = (
        ("k_cache", "indices", "topk_length"),
        ("extra_k_cache", "extra_indices", "extra_topk_length"),
    )
    sizes = ((case.topk, case.page), (case.extra_topk, case.extra_page))
    for (cache_name, index_name, length_name), (topk, page) in zip(names, sizes, strict=True):
        if not topk:
            continue
        cache = case.pool(-(-300 // page), page)
        tokens = cache.shape[0] * page
        indices = _slot_lists(case, (batch, case.s_q, topk), tokens)
        length = _length(case, batch, topk)
        case.fill(cache, _counted(indices, length, tokens))
        inputs |= {cache_name: cache, index_name: indices, length_name: length}
    return inputs | {"attn_sink": _sink(case)}


def prefill_inputs(case: Case) -> dict[str, Any]:
    """The arguments of a sparse prefill call of len(case.lens) queries."""
    queries, tokens = len(case.lens), 200
    kv = torch.full((tokens, case.h_kv, case.d_qk), float("nan"), dtype=case.dtype)
    indices = _slot_lists(case, (queries, case.h_kv, case.topk), tokens)
    length = _length(case, queries, case.topk)
    case.fill(kv.unsqueeze(1), _counted(indices, length, tokens))
    return {
        "q": case.queries(queries, case.h_q, case.d_qk),
        "kv": kv,
        "indices": indices,
        "topk_length": length,
        "attn_sink": _sink(case),
    }


def _random_case(seed: int, **facts: Any) -> Case:
    pick = random.Random(seed)
    d_qk, d_v = pick.choice(DIMS)
    h_kv = pick.choice((1, 1, 1, 2, 4, 8))
    chosen: dict[str, Any] = {
        "dtype": pick.choice((torch.bfloat16, torch.float16, torch.float32)),
        "s_q": pick.choice((1, 1, 2, 3, 4)),
        "h_kv": h_kv,
        "h_q": h_kv * pick.choice([n for n in (1, 3, 5, 12, 16, 64, 96, 128) if n * h_kv <= 128]),
        "page": pick.choice((1, 2, 3, 16, 37, 64, 128, 256)),
        "d_qk": d_qk,
        "d_v": d_v,
        "strides": pick.choice(("packed", "page_strided", "token_strided")),
        "q_strided": pick.random() < 0.3,
        "family": pick.choice(("flat", "peaked")),
    }
    if pick.random() < 0.3:
        layout = kv_format.get(pick.choice(sorted({*kv_format.IDS} - {*kv_format.PAIRS})))
        chosen |= {"kv_format": layout.name, "d_qk": layout.d_qk, "d_v": layout.d_v}
        chosen |= {"h_kv": 1, "strides": pick.choice(("packed", "page_strided"))}
    return Case(seed, **chosen | facts)


def random_dense(seed: int) -> Case:
    pick = random.Random(~seed)
    lens = [pick.choice((0, 1, 2, 3, 63, 64, 65, 300, pick.randint(1, 700))) for _ in range(4)]
    return _random_case(
        seed,
        lens=tuple(lens[: pick.randint(1, 4)]),
        width=pick.randint(0, 9),
        causal=pick.random() < 0.5,
        shared=pick.random() < 0.3,
    )


def _random_sparse(seed: int, **facts: Any) -> Case:
    pick = random.Random(~seed)
    return _random_case(
        seed,
        lens=(0,) * pick.randint(1, 4),
        topk=pick.choice((1, 7, 64, 128, 600)),
        topk_length=pick.random() < 0.5,
        sink=pick.random() < 0.5,
        **facts,
    )


def random_sparse(seed: int) -> Case:
    pick = random.Random(seed + 1)
    if pick.random() < 0.5:
        return _random_sparse(seed)
    extra = {"extra_topk": pick.choice((1, 64, 130)), "extra_page": pick.choice((1, 2, 64))}
    return _random_sparse(seed, **extra)


def random_prefill(seed: int) -> Case:
    pick = random.Random(~seed)
    case = _random_sparse(seed, kv_format="dense", s_q=1)
    case.lens = (0,) * pick.randint(1, 6)
    return case

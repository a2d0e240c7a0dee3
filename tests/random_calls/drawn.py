"""A random valid call of one of the three ops: its facts from one seed, the rest from another.

The facts are what a kernel is compiled for; calls of one kernel differ in batch, contents, lengths,
strides, addresses and views. On the CPU every call has facts of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import reference
import torch
from oracle import Expected
from placing import Placed, negated, place
from torch import Tensor

from flashmla_hub import kv_format

DIMS = ((576, 512), (576, 512), (512, 512), (320, 256))
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SINGLE = tuple(name for name in kv_format.IDS if name not in kv_format.PAIRS)


@dataclass(frozen=True)
class Facts:
    op: str
    layout: str
    d_qk: int
    d_v: int
    dtype: torch.dtype
    s_q: int
    h_q: int
    h_kv: int
    page: int
    causal: bool
    topk: int
    length: bool
    sink: bool
    extra: int
    extra_page: int
    extra_length: bool
    invariant: bool


@dataclass
class Drawn:
    """One call: keyword arguments of the public function, what it must return, what it may write.

    ``lse_factor``: how much wider the contract's bound of lse is (scales that are no powers of 2).
    """

    facts: Facts
    arguments: dict[str, Any]
    expected: Expected | None
    out: Placed | None
    lse: Placed | None
    lse_factor: float = 1.0
    inputs: list[Tensor] = field(default_factory=list)


def facts(seed: int, dtypes: tuple[str, ...]) -> Facts:
    draw = random.Random(f"facts {seed}")
    op = draw.choice(("dense", "dense", "sparse", "sparse", "prefill"))
    layout, (d_qk, d_v) = "dense", draw.choice(DIMS)
    if op != "prefill" and draw.random() < 0.5:
        layout = draw.choice(SINGLE)
        d_qk = draw.choice((576, 512)) if layout == "fp8" else reference.RECORDS[layout].d_qk
        d_v = 512
    fp8 = layout != "dense"
    h_kv = 1 if fp8 or op == "sparse" else draw.choice((1, 1, 1, 2, 3))
    page = 1 if op == "prefill" else draw.choice((1, 2, 3, 8, 16, 64, 64))
    extra = draw.randint(1, 12) if op == "sparse" and draw.random() < 0.4 else 0
    if extra and draw.random() < 0.15:
        (layout,), d_qk, d_v = kv_format.PAIRS, 512, 512
    fp8 = layout != "dense"
    s_q = 1 if op == "prefill" else draw.choice((1, 1, 1, 2, 3))
    return Facts(
        op=op, layout=layout, d_qk=d_qk, d_v=d_v,
        dtype=torch.bfloat16 if fp8 else DTYPES[draw.choice(dtypes)],
        s_q=s_q, h_q=h_kv * draw.choice((1, 2, 3, 5, 9)), h_kv=h_kv, page=page,
        causal=op == "dense" and draw.random() < 0.5,
        topk=0 if op == "dense" else draw.choice((1, 2, 7, 16, 33)),
        length=op != "dense" and draw.random() < 0.4,
        sink=op != "dense" and draw.random() < 0.4,
        extra=extra, extra_page=draw.choice((1, 2, 5, 64)) if extra else 0,
        extra_length=extra > 0 and draw.random() < 0.5,
        invariant=draw.random() < 0.1,
    )  # fmt: skip


class Drawing:
    """Draws the call of a seed, on a device."""

    def __init__(self, f: Facts, seed: int, device: torch.device) -> None:
        self.f, self.device = f, device
        self.random = random.Random(f"call {seed}")
        self.g = torch.Generator(device).manual_seed(seed)
        self.size = self.random.choice((0.1, 1.0))
        self.descale = 1.0
        if f.layout == "fp8" and self.random.random() < 0.7:
            self.descale = self.random.choice((0.25, 0.3, 2.0, -0.5))
        self.scale = self.random.choice((None, 0.05, 0.1, -0.05))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.g, device=self.device) * self.size

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(
            low, high, shape, generator=self.g, device=self.device, dtype=torch.int32
        )

    def cache(self, pages: int, size: int, used: Tensor, layout: str) -> Tensor:
        """(pages, size, h_kv, width), what must not be read in the slots that are not ``used``."""
        f = self.f
        if layout == "dense":
            values = self.normal(pages, size, f.h_kv, f.d_qk).to(f.dtype)
            values.view(-1, f.h_kv, f.d_qk)[~used] = torch.nan
            return values
        k = self.normal(pages, size, 1, f.d_qk).to(torch.bfloat16)
        packed = kv_format.quantize(k, layout, self.descale if layout == "fp8" else None)
        dead = ~used.view(pages, size)
        for part in kv_format.get(layout, f.d_qk).views(packed):
            part[dead] = 0xFF  # NaN in e4m3, in scales and in bfloat16
        raw = packed.view(torch.uint8)
        if self.random.random() < 0.5:
            return raw.view(torch.int8) if self.random.random() < 0.3 else raw
        return packed

    def placed_cache(self, values: Tensor) -> Tensor:
        whole = 16 // values.element_size()
        if self.f.layout == "model1" and values.shape[1] > 1:
            # The scales of a page follow its values: a page moves as a whole.
            pages, size = values.shape[:2]
            page_bytes = values.as_strided((pages, size * 584), (values.stride(0), 1))
            moved = place(page_bytes, self.random, whole=whole)
            step, base = moved.view.stride(0), moved.view.storage_offset()
            return moved.pool.as_strided(values.shape, (step, 584, 584, 1), base)
        fixed = 2 if self.f.op == "dense" and self.f.h_kv > 1 and self.random.random() < 0.5 else 1
        moved = place(values, self.random, whole=whole, fixed=fixed).view
        return negated(moved, self.random) if values.element_size() > 1 else moved

    def placed(self, values: Tensor, **options: Any) -> Tensor:
        return place(values, self.random, **options).view

    def query(self, *shape: int) -> Tensor:
        values = self.normal(*shape).to(self.f.dtype)
        kind = self.random.random()
        if kind < 0.1 and shape[0]:  # one row for all requests
            return values[:1].expand(*shape)
        if kind < 0.2:  # a slice of a wider last dimension, as q_nope beside q_rope
            wide = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=values.dtype,
                              device=self.device)  # fmt: skip
            return wide[..., shape[-1] :].copy_(values)
        return negated(place(values, self.random, whole=8).view, self.random)

    def lists(self, *shape: int, slots: int) -> Tensor:
        entries = self.integers(-2, slots + 2, *shape)
        kind = self.random.random()
        if kind < 0.15 and shape[-1]:
            entries[..., : shape[-1] // 2 + 1] = -1  # the whole head of a list
        elif kind < 0.2:
            entries.fill_(-1)
        return entries

    def used(self, sources: list[reference.Source], slots: int) -> Tensor:
        found = torch.zeros(slots, dtype=torch.bool, device=self.device)
        for source in sources:
            found[source.slots[source.seen.expand_as(source.slots)]] = True
        return found

    def length(self, topk: int, n: int) -> Tensor:
        return self.integers(-1, topk + 2, n)

    def output(self, *shape: int, dtype: torch.dtype) -> Placed | None:
        if self.random.random() < 0.6:
            return None
        values = torch.zeros(*shape, dtype=dtype, device=self.device)
        return place(values, self.random, whole=16 // values.element_size())


def draw(seed: int, device: torch.device, *, kernels: int = 0,
         dtypes: tuple[str, ...] = ("bfloat16", "float16")) -> Drawn:  # fmt: skip
    """The call of ``seed``; ``kernels`` > 0: with facts out of so many."""
    f = facts(seed % kernels if kernels else seed, dtypes)
    at = Drawing(f, seed, device)
    made = {"dense": _dense, "sparse": _sparse, "prefill": _prefill}[f.op](at)
    if f.invariant:
        made.arguments["batch_invariant"] = True
    made.inputs = [x for n, x in made.arguments.items()
                   if isinstance(x, Tensor) and n not in ("out", "lse_out")]  # fmt: skip
    return made


def _finish(at: Drawing, call: dict[str, Any], q: Tensor, sources: Any) -> Drawn:
    f, prefill = at.f, at.f.op == "prefill"
    batch = q.shape[0]
    given = at.scale
    scale = f.d_qk**-0.5 if given is None else given
    call["sm_scale" if prefill else "softmax_scale"] = scale if prefill else given
    sink = call.get("attn_sink")
    shape = (batch, f.h_q, f.d_v) if prefill else (batch, f.s_q, f.h_q, f.d_v)
    out = at.output(*shape, dtype=f.dtype)
    lse = None if prefill else at.output(batch, f.h_q, f.s_q, dtype=torch.float32)
    call["out"] = None if out is None else out.view
    if not prefill:
        call["lse_out"] = None if lse is None else lse.view
    expected = None
    if batch:
        wide = q.unsqueeze(1) if prefill else q
        expected = reference.attend(wide.resolve_neg(), sources, f.d_v, scale, sink)
    factor = 4.0 if at.descale == 0.3 else 1.0
    return Drawn(f, {k: v for k, v in call.items() if v is not None}, expected, out, lse, factor)


def _dense(at: Drawing) -> Drawn:
    f, r = at.f, at.random
    batch, width = r.choice((0, 1, 1, 2, 3, 5)), r.choice((0, 1, 2, 4) if f.page < 64 else (1, 2))
    lens = torch.tensor(
        [r.randint(-1, width * f.page + 1) for _ in range(batch)],
        dtype=torch.int32, device=at.device,
    )  # fmt: skip
    pages = batch * width + 2
    order = torch.randperm(pages, generator=at.g, device=at.device)
    table = order[: batch * width].view(batch, width).int()
    source = reference.paged(torch.empty(0), f.page, table, lens, 1, False)
    filled = source._replace(seen=source.seen.expand(-1, -1, -1, width * f.page))
    cache = at.cache(pages, f.page, at.used([filled], pages * f.page), f.layout)
    rows = reference.tokens(cache.resolve_neg(), f.layout, at.descale)
    dead = torch.arange(width, device=at.device) * f.page >= lens[:, None]
    garbage = table.masked_fill(dead, r.choice((2_147_480_000, -1)))
    q = at.query(batch, f.s_q, f.h_q, f.d_qk)
    call = {
        "q": q, "k_cache": at.placed_cache(cache), "block_table": at.placed(garbage),
        "cache_seqlens": lens, "head_dim_v": f.d_v, "causal": f.causal, **_named(at),
    }  # fmt: skip
    source = reference.paged(rows, f.page, table, lens, f.s_q, f.causal)
    return _finish(at, call, q, [source])


def _named(at: Drawing) -> dict[str, Any]:
    if at.f.layout == "dense":
        return {}
    named: dict[str, Any] = {"kv_format": at.f.layout, "is_fp8_kvcache": True}
    if at.descale != 1.0:
        named["descale_k"] = torch.tensor([at.descale], device=at.device)
    return named


def _one_list(
    at: Drawing, batch: int, page: int, topk: int, counted: bool, layout: str
) -> tuple:  # fmt: skip
    """A cache with the list over it: the cache as given, indices, their count and the source."""
    f = at.f
    pages = at.random.randint(1, 6)
    slots = pages * page
    indices = at.lists(batch, f.s_q, topk, slots=slots)
    count = at.length(topk, batch) if counted else None
    empty = torch.empty(slots, 0, device=at.device)
    source = reference.listed(empty, indices.unsqueeze(2), count)
    cache = at.cache(pages, page, at.used([source], slots), layout)
    rows = reference.tokens(cache.resolve_neg(), layout, at.descale)
    return at.placed_cache(cache), at.placed(indices), count, source._replace(tokens=rows)


def _sparse(at: Drawing) -> Drawn:
    f = at.f
    batch = at.random.choice((0, 1, 1, 2, 3, 5))
    first, second = kv_format.PAIRS.get(f.layout, (f.layout, f.layout))
    cache, indices, count, source = _one_list(at, batch, f.page, f.topk, f.length, first)
    q = at.query(batch, f.s_q, f.h_q, f.d_qk)
    call = {
        "q": q, "k_cache": cache, "block_table": None, "cache_seqlens": None,
        "head_dim_v": f.d_v, "indices": indices, "topk_length": count,
        "attn_sink": at.normal(f.h_q) if f.sink else None, **_named(at),
    }  # fmt: skip
    sources = [source]
    if f.extra:
        cache, indices, count, source = _one_list(
            at, batch, f.extra_page, f.extra, f.extra_length, second
        )
        call.update(extra_k_cache=cache, extra_indices_in_kvcache=indices, extra_topk_length=count)
        sources.append(source)
    made = _finish(at, call, q, sources)
    made.arguments.setdefault("block_table", None)
    made.arguments.setdefault("cache_seqlens", None)
    return made


def _prefill(at: Drawing) -> Drawn:
    f = at.f
    queries, slots = at.random.choice((1, 1, 2, 5, 9)), at.random.randint(1, 40)
    indices = at.lists(queries, f.h_kv, f.topk, slots=slots)
    count = at.length(f.topk, queries) if f.length else None
    empty = torch.empty(slots, 0, device=at.device)
    source = reference.listed(empty, indices.unsqueeze(1), count)
    values = at.cache(slots, 1, at.used([source], slots), "dense")
    rows = reference.tokens(values.resolve_neg(), "dense")
    kv = at.placed_cache(values.squeeze(1))
    q = at.query(queries, f.h_q, f.d_qk)
    call = {
        "q": q, "kv": kv, "indices": at.placed(indices), "d_v": f.d_v, "topk_length": count,
        "attn_sink": at.normal(f.h_q) if f.sink else None,
    }  # fmt: skip
    return _finish(at, call, q, [source._replace(tokens=rows)])

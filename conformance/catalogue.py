"""The list of known mistakes, the most telling first: where two reproduce an output, the first
is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashmla_hub.conformance import mistakes as bent
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.mistakes import Mistake, Variants
from flashmla_hub.conformance.oracle_torch import Oracle
from flashmla_hub.request import PACKED


def _when(condition: Callable[[Call], bool], *makers: Callable[[Call], Oracle]) -> Variants:
    def variants(call: Call) -> Iterator[Oracle]:
        if condition(call):
            for make in makers:
                yield make(call)

    return variants


def _always(call: Call) -> bool:
    return True


def _lse(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Call], Oracle]:
    return lambda call: bent.Lse(call, change)


def _max_unscaled(lse: Tensor, dots: Tensor, logits: Tensor) -> Tensor:
    top = logits.max(dim=1).values
    return lse - top + dots.max(dim=1).values


def _scales(call: Call) -> Iterator[Oracle]:
    key = call.case.key
    right = Oracle(call).scale
    for factor in (key.d_v**-0.5, (key.d_qk - key.d_v or key.d_qk) ** -0.5,
                   right * math.log2(math.e), right / math.log2(math.e)):  # fmt: skip
        if factor != right:
            yield bent.Scale(call, factor)
    for percent in (-50, -20, -10, -5, -2, -1, 1, 2, 5, 10, 20, 50, 100):
        yield bent.Scale(call, right * (1 + percent / 100))


SPLITS = (64, 128, 256, 512, 1024)  # sizes that ports split a row into, in keys


def _splits(call: Call) -> Iterator[Oracle]:
    longest = max(Oracle(call).length(row) for row in range(call.q.shape[0])) if bent.is_dense(
        call) else call.case.key.topk  # fmt: skip
    for size in SPLITS:
        for which in (-1, *range(min(-(-longest // size), 8))):
            for keep in (False, True):
                yield bent.Dropped(call, size, which, keep)


def _unweighted(call: Call) -> Iterator[Oracle]:
    for size in SPLITS:
        for sums in (False, True):
            yield bent.Unweighted(call, size, sums)


def _past(call: Call) -> Iterator[Oracle]:
    if not bent.is_dense(call):
        return
    size, s_q = call.case.key.page_block_size, call.case.key.s_q
    causal = call.case.key.causal

    def seen(extra: Callable[[int], int]) -> Callable[[int, int, int], int]:
        return lambda n, s, t: extra(n) - ((s - t - 1) if causal else 0)

    yield bent.Visible(call, seen(lambda n: -(-n // size) * size))
    yield bent.Visible(call, seen(lambda n: n + 1), past=1)
    if s_q > 1:
        yield bent.Visible(call, seen(lambda n: n + s_q - 1), past=s_q - 1)


def _other_lengths(call: Call) -> Iterator[Oracle]:
    if not bent.is_dense(call) or call.cache_seqlens is None or call.q.shape[0] < 2:
        return
    known = Oracle(call)
    lengths = [known.length(row) for row in range(call.q.shape[0])]
    yield bent.Length(call, lambda row, n: lengths[0])
    yield bent.Length(call, lambda row, n: lengths[row - 1])
    yield bent.Length(call, lambda row, n: lengths[(row + 1) % len(lengths)])
    yield bent.Length(call, lambda row, n: max(lengths))


def _page_orders(call: Call) -> Iterator[Oracle]:
    if not bent.is_dense(call) or call.block_table is None:
        return
    width = call.block_table.shape[1]
    yield bent.Pages(call, lambda row, pages: torch.arange(len(pages)))
    yield bent.Pages(call, lambda row, pages: torch.arange(len(pages)) + row * width)
    yield bent.Pages(call, lambda row, pages: pages.sort().values)
    yield bent.Pages(call, lambda row, pages: pages.flip(0))
    yield bent.Pages(call, lambda row, pages: pages[:1] + torch.arange(len(pages)))
    table = Oracle(call).table
    assert table is not None
    yield bent.Pages(call, lambda row, pages: table[0, : len(pages)])
    yield bent.Pages(call, lambda row, pages: torch.cat([pages[1:], pages[:1]]))


def _first_seen(slots: Tensor, capacity: int) -> Tensor:
    return torch.unique(slots[slots >= 0])


def _minus_one(slots: Tensor, capacity: int) -> Tensor:
    return torch.where(slots == -1, 0, slots)


def _is_sparse(call: Call) -> bool:
    return not bent.is_dense(call)


def _rounded(dtype: torch.dtype) -> tuple[Callable[[Call], Oracle], ...]:
    return (lambda call: bent.Rounded(call, dtype, False),
            lambda call: bent.Rounded(call, dtype, True))  # fmt: skip


def _wrapped(bits: int, unit: int) -> tuple[Callable[[Call], Oracle], ...]:
    def make(signed: bool) -> Callable[[Call], Oracle]:
        return lambda call: bent.Wrapped(call, bits, unit or call.kv.element_size(), signed)

    return make(False), make(True)


def _variant(name: str) -> Callable[[Call], bool]:
    return lambda call: call.case.variant == name


CATALOGUE: tuple[Mistake, ...] = (
    Mistake("LSE in base 2", "C1.8", _when(_always, _lse(lambda lse, d, x: lse / math.log(2)))),
    Mistake("LSE without the scale", "C1.8", _when(
        _always, _lse(lambda lse, d, x: torch.logsumexp(d, dim=1)), _lse(_max_unscaled),
        _lse(lambda lse, d, x: lse * float((d / x).nanmean())))),
    Mistake("LSE negated", "C1.8", _when(_always, _lse(lambda lse, d, x: -lse))),
    Mistake("LSE is the maximum alone", "C1.8", _when(
        _always, _lse(lambda lse, d, x: x.max(dim=1).values))),
    Mistake("LSE without the maximum", "C1.8", _when(
        _always, _lse(lambda lse, d, x: lse - x.max(dim=1).values))),
    Mistake("offsets wrapped at 2^31 elements", "C1.14", _when(
        _variant("offset_2g_elements"), *_wrapped(31, 1))),
    Mistake("offsets wrapped at 2^32 bytes", "C1.14", _when(
        _variant("offset_4g_bytes"), *_wrapped(32, 0))),
    Mistake("softmax_scale ignored", "C1.6", _when(
        _always, lambda call: bent.Scale(call, 1.0),
        lambda call: bent.Scale(call, call.case.key.d_qk**-0.5))),
    Mistake("softmax_scale applied twice", "C1.6", _when(
        _always, lambda call: bent.Scale(call, Oracle(call).scale ** 2))),
    Mistake("causal mask top-left aligned", "C1.7", _when(
        bent.is_wide, lambda call: bent.Visible(call, lambda n, s, t: min(t + 1, n)))),
    Mistake("causal mask ignored", "C1.7", _when(
        lambda call: bent.is_wide(call) and call.case.key.causal,
        lambda call: bent.Visible(call, lambda n, s, t: n))),
    Mistake("causal mask applied unasked", "C1.7", _when(
        lambda call: bent.is_wide(call) and not call.case.key.causal,
        lambda call: bent.Visible(call, lambda n, s, t: n - s + t + 1))),
    Mistake("mask off by one", "C1.7", _when(
        lambda call: bent.is_wide(call) and call.case.key.causal,
        lambda call: bent.Visible(call, lambda n, s, t: n - s + t),
        lambda call: bent.Visible(call, lambda n, s, t: min(n, n - s + t + 2)))),
    Mistake("last token dropped", "C1.7", _when(
        bent.is_dense, lambda call: bent.Length(call, lambda row, n: n - 1),
        lambda call: bent.Visible(call, lambda n, s, t: n - 1))),
    Mistake("V taken from the last columns of K", "C1.2", _when(
        lambda call: call.case.key.d_qk > call.case.key.d_v, bent.Values)),
    Mistake("rope part ignored", "C1.2", _when(
        lambda call: call.case.key.d_qk > call.case.key.d_v, bent.Rope)),
    Mistake("query heads grouped interleaved", "C1.6", _when(
        lambda call: call.case.key.h_kv > 1, bent.Interleaved)),
    Mistake("last partial page dropped", "C1.3", _when(bent.is_dense, lambda call: bent.Length(
        call, lambda row, n: n // call.case.key.page_block_size * call.case.key.page_block_size))),
    Mistake("last page dropped", "C1.3", _when(bent.is_dense, lambda call: bent.Length(
        call, lambda row, n: (n - 1) // call.case.key.page_block_size
        * call.case.key.page_block_size))),
    Mistake("reads past the length", "C1.5", _past),
    Mistake("strides of the cache ignored", "C1.2", _when(
        bent.is_strided, lambda call: bent.Strides(call, True, True),
        lambda call: bent.Strides(call, True, False),
        lambda call: bent.Strides(call, False, True))),
    Mistake("strides of q ignored", "C1.1", _when(
        lambda call: call.case.key.q_strides != PACKED and call.case.key.kv_format == "dense",
        lambda call: bent.Strides(call, False, False, q=True))),
    Mistake("page order ignored", "C1.3", _page_orders),
    Mistake("length of another row used", "C1.4", _other_lengths),
    Mistake("duplicate topk entries merged", "C4.1", _when(
        _is_sparse, lambda call: bent.Slots(call, _first_seen))),
    Mistake("index -1 read as slot 0", "C4.1", _when(
        _is_sparse, lambda call: bent.Slots(call, _minus_one),
        lambda call: bent.Slots(call, lambda slots, n: slots.clamp(min=0)))),
    Mistake("indices past the cache read", "C4.1", _when(
        _is_sparse, lambda call: bent.Slots(call, lambda slots, n: slots.clamp(max=n - 1)),
        lambda call: bent.Slots(call, lambda slots, n: slots.clamp(0, n - 1)),
        lambda call: bent.Slots(call, lambda slots, n: slots % n),
        lambda call: bent.Slots(
            call, lambda slots, n: torch.where(slots < -1, slots % n, slots.clamp(max=n - 1))))),
    Mistake("topk_length ignored", "C4.1", _when(
        lambda call: call.case.key.topk_length or call.case.key.extra_topk_length,
        lambda call: bent.Slots(call, lambda slots, n: slots, whole=True))),
    Mistake("attn_sink folded into LSE", "C4.2", _when(
        lambda call: call.attn_sink is not None, lambda call: bent.Sink(
            call, lambda out, lse, sink: (out * torch.sigmoid(lse - sink)[:, None],
                                          torch.logaddexp(lse, sink))))),
    Mistake("attn_sink ignored", "C4.2", _when(
        lambda call: call.attn_sink is not None,
        lambda call: bent.Sink(call, lambda out, lse, sink: (out, lse)))),
    Mistake("extra cache ignored", "C4.1a", _when(
        lambda call: call.extra_kv is not None, bent.OneCache)),
    Mistake("FP8 scales ignored", "C3.2", _when(
        lambda call: call.case.key.kv_format != "dense",
        lambda call: bent.Unscaled(call, False), lambda call: bent.Unscaled(call, True))),
    Mistake("fp16 overflow", "C1.12", _when(
        _variant("big_logits"), *_rounded(torch.float16))),
    Mistake("exp without the maximum taken off", "C1.12", _when(_always, bent.NoMaximum)),
    Mistake("LSE in half precision", "C1.8", _when(
        _always, _lse(lambda lse, d, x: lse.half().double()),
        _lse(lambda lse, d, x: lse.bfloat16().double()))),
    Mistake("one split's weight lost", "C1.12", _splits),
    Mistake("splits merged without their weights", "C1.12", _unweighted),
    Mistake("softmax_scale off", "C1.6", _scales),
    Mistake("logits rounded to half precision", "C1.12", _when(
        _always, *_rounded(torch.float16), *_rounded(torch.bfloat16))),
    Mistake("inputs rounded to tf32 or bf16", "C1.12", _when(
        lambda call: call.case.key.dtype == "float32",
        *(lambda call, bits=bits, cut=cut: bent.RoundedInputs(call, bits, cut)
          for bits in (11, 8) for cut in (False, True)))),
)  # fmt: skip

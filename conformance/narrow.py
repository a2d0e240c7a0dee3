"""Which axes of a failing case are to blame, and from where on: by putting smaller cases.

Every axis of the case that is not at its plain value is put back, one after the other, the costly
ones first; what the case still fails without was not to blame. Of the axes that are left, numbers
are searched for the largest value that is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from flashmla_hub.conformance.model import VALUES, Case
from flashmla_hub.request import DENSE_DECODE, PACKED, SPARSE_PREFILL

Fails = Callable[[Case], bool | None]

MOST_AXES = 3  # more are no finding
STEPS = 4  # of the search between a power of two that is right and one that is not
PAGES = 4096  # columns of a block table that are served

WORDS = {
    "neg_view": "a lazily negated q",
    "kv_neg_view": "a lazily negated cache",
    "inference": "tensors of inference mode",
    "uint8": "a uint8 cache",
    "int8": "an int8 cache",
    "head_major": "head-major q",
    "q_batch_strided": "batch-strided q",
    "q_expanded": "expanded q",
    "null_block": "NaN in the null block",
    "pad_nan": "NaN in q of rows without keys",
    "leading_invalid": "invalid entries at the head of a list",
    "invalid": "invalid entries",
    "duplicates": "duplicate entries",
    "records": "records between tokens",
    "sink_inf": "infinite sinks",
    "table_strided": "a strided block table",
    "pooled": "pages shared by rows",
    "unaligned": "unaligned tensors",
    "near_extra": "a far cache",
}
"""Layout words that can be to blame, as people say them."""


@dataclass(frozen=True)
class Axis:
    """``get`` a case's value; ``put`` makes the case with another, None where it cannot be.

    ``past`` is the phrase for numbers above the largest right one, '' for axes without order;
    ``named`` says one value.
    """

    name: str
    plain: Any
    get: Callable[[Case], Any]
    put: Callable[[Case, Any], Case | None]
    past: str = ""
    named: str = "{0} {1}"


def _key(name: str) -> Callable[[Case, Any], Case | None]:
    return lambda case, value: replace(case, key=case.key.with_(**{name: value}))


def _rows(case: Case, count: int) -> Case | None:
    return replace(case, batch=count, lengths=case.lengths[:count],
                   extra_lengths=case.extra_lengths[:count])  # fmt: skip


def _tokens(case: Case, most: int) -> Case | None:
    return replace(case, lengths=tuple(min(n, most) for n in case.lengths))


def _topk(case: Case, topk: int) -> Case | None:
    counts = tuple(n if case.key.topk_length else topk for n in case.lengths)
    return replace(case, lengths=tuple(min(n, topk) for n in counts),
                   key=case.key.with_(topk=topk))  # fmt: skip


def _no_length(case: Case, given: bool) -> Case | None:
    return replace(case, lengths=(case.key.topk,) * case.batch,
                   key=case.key.with_(topk_length=given))  # fmt: skip


def _extra(case: Case, topk: int) -> Case | None:
    if not topk:
        key = case.key.with_(extra_topk=0, extra_page_block_size=0, extra_topk_length=False,
                             extra_kv_strides=PACKED)  # fmt: skip
        return replace(case, key=key, extra_lengths=())
    counts = tuple(min(n, topk) for n in case.extra_lengths)
    if not case.key.extra_topk_length:
        counts = (topk,) * case.batch
    return replace(case, extra_lengths=counts, key=case.key.with_(extra_topk=topk))


def _no_extra_length(case: Case, given: bool) -> Case | None:
    return replace(case, extra_lengths=(case.key.extra_topk,) * case.batch,
                   key=case.key.with_(extra_topk_length=given))  # fmt: skip


def _heads(case: Case, h_q: int) -> Case | None:
    return replace(case, key=case.key.with_(h_q=h_q)) if h_q % case.key.h_kv == 0 else None


def _queries(case: Case, s_q: int) -> Case | None:
    return replace(case, key=case.key.with_(s_q=s_q, causal=case.key.causal and s_q > 1))


def _page(case: Case, size: int) -> Case | None:
    wide = case.key.op == DENSE_DECODE and max((*case.lengths, 1)) > PAGES * size
    return None if wide else replace(case, key=case.key.with_(page_block_size=size))


def _dims(case: Case, dims: tuple[int, int]) -> Case | None:
    if case.key.kv_format != "dense":
        return None
    return replace(case, key=case.key.with_(d_qk=dims[0], d_v=dims[1]))


def _numbers(case: Case, value: tuple[str, str]) -> Case | None:
    return replace(case, family=value[0], variant=value[1])


def _q_strides(case: Case, value: str) -> Case | None:
    kept = tuple(w for w in case.layout if w not in ("head_major", "q_batch_strided", "q_expanded"))
    return replace(case, layout=kept, key=case.key.with_(q_strides=value))


AXES = (
    Axis("rows", 2, lambda c: c.batch, _rows, "rows past {0} of a batch"),
    Axis("tokens", 130, lambda c: max((*c.lengths, 0)) if c.key.op == DENSE_DECODE else 130,
         _tokens, "tokens past {0}"),
    Axis("columns", 0, lambda c: c.table_width, lambda c, n: replace(c, table_width=n),
         "block tables wider than {0} columns"),
    Axis("topk", 64, lambda c: c.key.topk or 64, _topk, "lists past {0} entries", "topk {1}"),
    Axis("s_q", 1, lambda c: c.key.s_q, _queries, "more than {0} queries a row"),
    Axis("extra", 0, lambda c: c.key.extra_topk, _extra, "second lists past {0} entries"),
    Axis("h_q", 16, lambda c: c.key.h_q, _heads, "more than {0} heads"),
    Axis("page", 64, lambda c: 64 if c.key.op == SPARSE_PREFILL else c.key.page_block_size, _page,
         "pages past {0} tokens"),
    Axis("extra page", 64, lambda c: c.key.extra_page_block_size or 64,
         _key("extra_page_block_size"), "second pages past {0} tokens"),
    Axis("h_kv", 1, lambda c: c.key.h_kv, _key("h_kv")),
    Axis("causal", False, lambda c: c.key.causal, _key("causal"), named="causal"),
    Axis("topk_length", False, lambda c: c.key.topk_length, _no_length, named="topk_length"),
    Axis("extra_topk_length", False, lambda c: c.key.extra_topk_length, _no_extra_length,
         named="extra_topk_length"),
    Axis("attn_sink", False, lambda c: c.key.attn_sink, _key("attn_sink"), named="attn_sink"),
    Axis("batch_invariant", False, lambda c: c.key.batch_invariant, _key("batch_invariant"),
         named="batch_invariant"),
    Axis("dtype", "bfloat16", lambda c: c.key.dtype, _key("dtype"), named="{1}"),
    Axis("head dims", (576, 512), lambda c: (c.key.d_qk, c.key.d_v), _dims),
    Axis("q strides", PACKED, lambda c: c.key.q_strides, _q_strides, named="strided q"),
    Axis("kv strides", PACKED, lambda c: c.key.kv_strides, _key("kv_strides"),
         named="{1} cache"),
    Axis("extra strides", PACKED, lambda c: c.key.extra_kv_strides, _key("extra_kv_strides"),
         named="{1} second cache"),
    Axis("scale", None, lambda c: c.scale, lambda c, v: replace(c, scale=v),
         named="a softmax_scale given"),
    Axis("numbers", ("peaked", ""), lambda c: (c.family, c.variant), _numbers),
)  # fmt: skip


def _word(word: str) -> Axis:
    """An axis of its own for a layout word."""

    def put(case: Case, there: bool) -> Case | None:
        return replace(case, layout=tuple(w for w in case.layout if w != word))

    return Axis(word, False, lambda c: word in c.layout, put, named=WORDS[word])


def axes_of(case: Case) -> Iterator[Axis]:
    """The axes of a case that are not at their plain value."""
    if case.variant.startswith("offset_"):
        yield from (a for a in AXES if a.name in ("rows", "extra") and a.get(case) != a.plain)
        return
    for axis in (*AXES, *(_word(word) for word in WORDS)):
        if axis.get(case) != axis.plain and not (axis.past and axis.get(case) < axis.plain
                                                 and axis.name not in ("page", "h_q")):  # fmt: skip
            yield axis


def blame(case: Case, fails: Fails) -> str:
    """The axes that the failing ``case`` needs to fail, in words; '' where none is needed, or
    too many are. ``fails`` judges another case: None where it cannot be put."""
    if case.check != VALUES:
        return ""
    kept = []
    for axis in axes_of(case):
        smaller = axis.put(case, axis.plain)
        if smaller is not None and fails(smaller):
            case = smaller
        else:
            kept.append(axis)
    kept = [axis for axis in kept if axis.get(case) != axis.plain]
    if not kept or len(kept) > MOST_AXES:
        return ""
    return " with ".join(_phrase(axis, case, fails) for axis in kept)


def _phrase(axis: Axis, case: Case, fails: Fails) -> str:
    value = axis.get(case)
    said = axis.named.format(axis.name, _plain_words(value))
    if axis.name == "q strides":
        said = next((WORDS[w] for w in case.layout if w in WORDS and "q" in WORDS[w]), said)
    if not axis.past or value < axis.plain:
        return said
    right, wrong = _search(axis, case, fails)
    if right is None:
        return said
    text = axis.past.format(right if wrong - right == 1 else f"{right} (or up to {wrong - 1})")
    if case.key.op == SPARSE_PREFILL and axis.name == "rows":
        text = text.replace("rows", "queries").replace("a batch", "a call")
    return text


def _search(axis: Axis, case: Case, fails: Fails) -> tuple[int | None, int]:
    """(the largest value seen right, the smallest above it seen wrong); None for no order."""
    right, wrong = int(axis.plain), int(axis.get(case))

    def bad(value: int) -> bool:
        other = axis.put(case, value)
        return other is not None and bool(fails(other))

    step = 1 << max(right, 1).bit_length()
    while step < wrong:
        if bad(step):
            wrong = step
            break
        right, step = step, 2 * step
    if wrong - right > 1 and bad(right + 1):
        return right, right + 1
    for _ in range(STEPS):
        if wrong - right <= 1:
            break
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if bad(middle) else (middle, wrong)
    return right, wrong


def _plain_words(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(str(part) for part in value if part)
    return str(value).replace("_strided", "-strided")

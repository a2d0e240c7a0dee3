"""The axes of a declaration and the values that each is put to the test at (C5.2a).

The first value of an axis is its plain one. Limits keep a case within what one machine computes
in seconds; the two greatest values of a pair of axes meet only where these allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmla_hub.conformance import fp8
from flashmla_hub.conformance.drawn.declared import Declaration, ends
from flashmla_hub.request import (
    DENSE_DECODE,
    PACKED,
    PAGE_STRIDED,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
)

# least, middles, greatest served (contract C1, C4, C5.2a)
SERVED = {
    "s_q": (1, 4, 16),
    "h_q": (1, 96, 128),
    "h_kv": (1, 2, 4),
    "page_block_size": (1, 64, 1280),
    "topk": (1, 64, 2048, 16384),
    "extra_topk": (1, 64, 2048),
    "extra_page_block_size": (1, 64, 1280),
}
PLAIN = {"s_q": 1, "h_q": 1, "h_kv": 1, "page_block_size": 64, "topk": 64}
BATCHES = {DENSE_DECODE: (3, 1, 33, 512), SPARSE_DECODE: (3, 1, 33, 512),
           SPARSE_PREFILL: (5, 1, 33, 4096)}  # fmt: skip
TOKENS = (200, 1, 2100, 131072)
WIDTHS = (0, 4096)

MOST_VECTORS = 1 << 16  # rows * queries * heads, of calls with several queries a row
MOST_ROW_WORK = 1 << 25  # tokens of the longest row, or entries, * queries * heads
MOST_ENTRIES = (1 << 20) + (1 << 16)  # of all lists of a call
MOST_DOUBLE_COLUMNS = 4096  # of a block table


def axes_of(declared: Declaration) -> dict[str, tuple[Any, ...]] | None:
    """Axis: values, plain first. None where the served ranges and the declaration are apart."""
    op = declared.word("op")
    axes: dict[str, tuple[Any, ...]] = {
        "dtype": declared.words("dtypes"),
        "head_dims": declared.words("head_dims"),
    }
    for name in ("s_q", "h_q", "h_kv", "page_block_size"):
        axes[name] = _plain_first(name, ends(declared.numbers(name), SERVED[name]))
    if op == SPARSE_PREFILL:
        axes["page_block_size"] = axes["s_q"] = (1,)
        # a list for each KV head is not judged yet: the oracle knows one list a query
        axes["h_kv"] = tuple(n for n in axes["h_kv"] if n == 1)
    if op != DENSE_DECODE:
        axes["topk"] = _plain_first("topk", ends(declared.numbers("topk"), SERVED["topk"]))
    axes["batch"] = BATCHES[op]
    if op == DENSE_DECODE:
        axes["tokens"] = TOKENS
        axes["table_width"] = WIDTHS
        axes["causal"] = declared.words("causal")
    else:
        axes["topk_length"] = (False, True) if declared.flag("topk_length") else (False,)
        axes["attn_sink"] = (False, True) if declared.flag("attn_sink") else (False,)
        axes |= _extra(declared)
    strides = declared.words("kv_strides")
    if op == SPARSE_PREFILL:  # one flat array has no pages
        strides = tuple(s for s in strides if s != PAGE_STRIDED)
    axes["kv_strides"] = strides
    axes["q_memory"] = _q_memory(declared)
    axes["memory"] = _memory(op)
    axes["tensors"] = _tensors(declared)
    axes["numbers"] = ("peaked", "flat") if op != DENSE_DECODE else (
        "peaked", "flat", "big_logits", "equal")  # fmt: skip
    if all(d_qk == d_v for d_qk, d_v in axes["head_dims"]):
        axes["numbers"] = tuple(name for name in axes["numbers"] if name != "equal")
    axes["scale"] = (None, 0.11)
    axes["batch_invariant"] = (False, True) if declared.flag("batch_invariant") else (False,)
    return None if any(not values for values in axes.values()) else axes


def _plain_first(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    plain = PLAIN[name]
    return (plain, *(n for n in values if n != plain)) if plain in values else values


def _extra(declared: Declaration) -> dict[str, tuple[Any, ...]]:
    """The second cache: none, or (topk, page, with a length, strides) at the ends of each."""
    if declared.word("op") != SPARSE_DECODE:
        return {}
    topks = ends(declared.numbers("extra_topk"), SERVED["extra_topk"])
    pages = ends(declared.numbers("extra_page_block_size"), SERVED["extra_page_block_size"])
    if not topks or not pages:
        return {}
    strides = declared.words("extra_kv_strides") or declared.words("kv_strides")
    return {
        "extra_topk": (0, *topks),
        "extra_page_block_size": pages,
        "extra_topk_length": (False, True) if declared.flag("extra_topk_length") else (False,),
        "extra_kv_strides": strides,
    }


def _q_memory(declared: Declaration) -> tuple[str, ...]:
    words = [""] if PACKED in declared.words("q_strides") else []
    if TOKEN_STRIDED in declared.words("q_strides"):
        words += ["wide", "head_major", "q_batch_strided", "q_expanded"]
    return tuple(words)


def _memory(op: str) -> tuple[str, ...]:
    if op == DENSE_DECODE:
        return ("", "poison pad_nan", "poison null_block", "table_strided")
    return ("", "poison invalid", "poison leading_invalid null_block pad_nan", "duplicates")


def _tensors(declared: Declaration) -> tuple[str, ...]:
    formats = declared.words("kv_formats")
    if formats == ("dense",):
        return ("", "neg_view", "inference", "kv_neg_view")
    return ("", "uint8", "int8", "neg_view", "inference")


def valid(op: str, row: Mapping[str, Any]) -> bool:
    """Whether a row, whole or in part, makes a case: it can be, and is within the limits."""

    def get(name: str, default: Any) -> Any:
        return row.get(name, default)

    heads, kv_heads, queries = get("h_q", 0), get("h_kv", 1), get("s_q", 1)
    if heads and heads % kv_heads:
        return False
    if get("extra_topk", 1) == 0 and (
        get("extra_topk_length", False) or get("extra_kv_strides", PACKED) != PACKED
    ):
        return False
    if get("causal", False) and get("s_q", 2) == 1:
        return False  # one and the same request
    if get("q_memory", "") == "head_major" and op != SPARSE_PREFILL and get("s_q", 2) == 1:
        return False  # packed all the same
    if get("q_memory", "") in ("q_expanded", "q_batch_strided") and get("batch", 2) == 1:
        return False
    if get("q_memory", "") == "q_expanded" and "pad_nan" in get("memory", ""):
        return False
    batch, heads = get("batch", 1), heads or 1
    if batch * queries * heads > MOST_VECTORS and not (batch >= 512 and queries == 1):
        return False
    entries = get("topk", 0) + get("extra_topk", 0)
    if batch * queries * entries > MOST_ENTRIES:
        return False
    tokens, page = get("tokens", 1), get("page_block_size", 1280)
    if tokens > MOST_DOUBLE_COLUMNS * page:
        return False
    if get("numbers", "") == "equal":
        d_qk, d_v = get("head_dims", (576, 512))
        if d_qk == d_v:
            return False
    return bool(max(tokens, entries) * queries * heads <= MOST_ROW_WORK)


def stride_fields(row: Mapping[str, Any], op: str) -> dict[str, str]:
    """The stride classes of a row as KernelKey names them."""
    packed = row["q_memory"] == "" or (
        row["q_memory"] == "head_major" and row["batch"] == 1 and op == SPARSE_PREFILL
    )
    fields = {"q_strides": PACKED if packed else TOKEN_STRIDED, "kv_strides": row["kv_strides"]}
    if row.get("extra_topk"):
        fields["extra_kv_strides"] = row["extra_kv_strides"]
    return fields


def paged(kv_format: str) -> bool:
    """Whether a layout's token stride is fixed by its pages."""
    layout = fp8.LAYOUTS.get(kv_format)
    return layout is not None and layout.split

"""Cases drawn from a port's claims (C5.2a): a covering array over the axes of each declaration.

The rule is fixed: the same declaration gives the same cases, ids and digests, on every machine.
``mustpass/drawn-v2.txt`` freezes the rule by the digests of what it makes of a few declarations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from flashmla_hub.conformance.drawn.axes import axes_of, paged, stride_fields, valid
from flashmla_hub.conformance.drawn.covering import Row, covering
from flashmla_hub.conformance.drawn.declared import Declaration
from flashmla_hub.conformance.model import CLAIMS, LAYOUT_ORDER, Case
from flashmla_hub.conformance.pools import OWNERS, owner_of, page_count
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL, TOKEN_STRIDED, KernelKey

# what a covering array is drawn from; other fields of a declaration are promises, not axes
FIELDS = (
    "op", "dtypes", "head_dims", "s_q", "h_q", "h_kv", "page_block_size", "kv_formats", "causal",
    "topk", "topk_length", "attn_sink", "extra_topk", "extra_page_block_size",
    "extra_topk_length", "batch_invariant", "kv_strides", "q_strides", "extra_kv_strides",
)  # fmt: skip
LONG, MANY = 1 << 14, 512  # tokens of a row, rows: from there on a dense case belongs to L3
OPS = {"dense_decode": "dense", "sparse_decode": "sparse", "sparse_prefill": "prefill"}


def cases_from(claims: Iterable[Mapping[str, Any]]) -> tuple[Case, ...]:
    """The cases of all declarations; those that differ in promises or devices only count once.

    Raises ValueError for claims that are not of the form the kit records.
    """
    texts = []
    for claim in claims:
        for kv_format in Declaration(claim).words("kv_formats"):
            facts = {name: claim[name] for name in FIELDS if name in claim}
            texts.append(json.dumps({**facts, "kv_formats": [kv_format]}, sort_keys=True))
    seen: dict[str, int] = {}
    cases: list[Case] = []
    for text in dict.fromkeys(texts):
        declared = json.loads(text)
        name = f"{OPS.get(declared['op'], declared['op'])}-{declared['kv_formats'][0]}"
        seen[name] = seen.get(name, 0) + 1
        tail = f"-{seen[name]}" if seen[name] > 1 else ""
        cases += _drawn(text, f"{name}{tail}")
    return tuple(cases)


@functools.cache
def _drawn(text: str, name: str) -> tuple[Case, ...]:
    declared = Declaration(json.loads(text))
    op, kv_format = declared.word("op"), declared.words("kv_formats")[0]
    axes = axes_of(declared) if op in OPS else None
    if axes is None:
        return ()
    if paged(kv_format):
        axes["kv_strides"] = tuple(s for s in axes["kv_strides"] if s != TOKEN_STRIDED)
        if "extra_kv_strides" in axes:
            axes["extra_kv_strides"] = tuple(
                s for s in axes["extra_kv_strides"] if s != TOKEN_STRIDED
            )
    rows = covering(axes, lambda row: valid(op, row))
    return tuple(
        case_of(row, op, kv_format, f"drawn/{name}/{number:02d}") for number, row in enumerate(rows)
    )


def case_of(row: Row, op: str, kv_format: str, id: str) -> Case:
    """The case of one row of a covering array."""
    d_qk, d_v = row["head_dims"]
    facts: dict[str, Any] = {
        name: row[name]
        for name in ("dtype", "s_q", "h_q", "h_kv", "page_block_size", "batch_invariant",
                     "topk", "topk_length", "attn_sink", "causal")
        if name in row
    }  # fmt: skip
    if row.get("extra_topk"):
        facts |= {name: row[name] for name in ("extra_topk", "extra_page_block_size",
                                               "extra_topk_length")}  # fmt: skip
    key = KernelKey(op=op, d_qk=d_qk, d_v=d_v, kv_format=kv_format, **facts,
                    **stride_fields(row, op))  # fmt: skip
    words = {*row["memory"].split(), *row["tensors"].split(), "tiled"}
    if row["q_memory"] not in ("", "wide"):
        words.add(row["q_memory"])
    if row["batch"] > OWNERS and op == DENSE_DECODE:
        words.add("pooled")
    numbers = row["numbers"]
    family, variant = (numbers, "") if numbers in ("flat", "peaked") else ("extreme", numbers)
    lengths = _dense_lengths(row) if op == DENSE_DECODE else _counts(row, "topk")
    return Case(
        id=id, clauses=_clauses(op, kv_format), level=_level(op, kv_format, row), key=key,
        batch=row["batch"], lengths=lengths, optional=CLAIMS, family=family, variant=variant,
        layout=tuple(w for w in LAYOUT_ORDER if w in words), scale=row["scale"],
        extra_lengths=_counts(row, "extra_topk") if row.get("extra_topk") else (),
        table_width=row.get("table_width", 0),
    )  # fmt: skip


def _dense_lengths(row: Row) -> tuple[int, ...]:
    """One row of ``tokens``, the others short; some empty where there are many."""
    batch, longest = row["batch"], row["tokens"]
    lengths = [1 + (37 * n) % min(longest, 90) for n in range(batch)]
    for n in range(batch):
        if n % 11 == 7:
            lengths[n] = 0
    lengths[batch // 3] = longest
    if batch > OWNERS:
        page = row["page_block_size"]
        for n in range(OWNERS, batch):
            room = page_count(lengths[owner_of(n)], page) * page
            lengths[n] = min(lengths[n], room) if n != batch // 3 else longest
    return tuple(lengths)


def _counts(row: Row, name: str) -> tuple[int, ...]:
    """How many entries of each list count: all, or with a length fewer in most rows."""
    topk, batch = row[name], row["batch"]
    length = "extra_topk_length" if name == "extra_topk" else "topk_length"
    if not row[length]:
        return (topk,) * batch
    counts = [(topk * (n + 1) * 5 // 7) % (topk + 1) for n in range(batch)]
    counts[batch // 3] = topk
    return tuple(counts)


def _clauses(op: str, kv_format: str) -> tuple[str, ...]:
    own = {"dense_decode": ("C1.12", "C1.3"), "sparse_decode": ("C4.1", "C4.1b"),
           SPARSE_PREFILL: ("C4.3", "C4.1b")}[op]  # fmt: skip
    return ("C5.2a", *own, *(() if kv_format == "dense" else ("C3.2",)))


def _level(op: str, kv_format: str, row: Row) -> str:
    """Dense decode's small ones belong to L2, all others to production."""
    small = row.get("tokens", 0) < LONG and row["batch"] < MANY
    return "L2" if op == DENSE_DECODE and kv_format == "dense" and small else "L3"

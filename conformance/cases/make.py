"""Makes cases, and their ids from what distinguishes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmla_hub.conformance.model import LAYOUT_ORDER, VALUES, Case
from flashmla_hub.request import KernelKey

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

ITEM = {"float32": 4}  # bytes of an element; 2 of the other dtypes


def make(
    group: str,
    level: str,
    clauses: str,
    lengths: Sequence[int] = (),
    *,
    check: str = VALUES,
    family: str = "flat",
    variant: str = "",
    words: str = "",
    scale: float | None = None,
    extra_lengths: Sequence[int] = (),
    table_width: int = 0,
    optional: str = "",
    name: str = "",
    **facts: Any,
) -> Case:
    """One case; ``facts`` are fields of KernelKey, ``words`` layout words, ``clauses`` a list.

    ``name`` replaces the part of the id after the group where the facts alone do not tell.
    """
    layout = tuple(w for w in LAYOUT_ORDER if w in words.split())
    unknown = set(words.split()) - set(layout)
    if unknown:
        raise ValueError(f"layout words {sorted(unknown)}: expected some of {LAYOUT_ORDER}")
    if "unaligned" in layout:  # q and the cache begin at their second element
        facts["q_alignment"] = facts["kv_alignment"] = ITEM.get(facts.get("dtype", ""), 2)
    key = KernelKey(**facts)
    detail = name or _detail(key, family, variant, layout)
    return Case(
        id=f"{group}/{detail}", clauses=tuple(clauses.split()), level=level, key=key,
        batch=len(lengths), lengths=tuple(lengths), check=check, optional=optional, family=family,
        variant=variant, layout=layout, scale=scale, extra_lengths=tuple(extra_lengths),
        table_width=table_width,
    )  # fmt: skip


def _detail(key: KernelKey, family: str, variant: str, layout: tuple[str, ...]) -> str:
    neutral = KernelKey()
    parts = [f"h{key.h_q}"]
    if key.s_q > 1:
        parts.append(f"sq{key.s_q}" + ("-causal" if key.causal else ""))
    if key.h_kv > 1:
        parts.append(f"hkv{key.h_kv}")
    if (key.d_qk, key.d_v) != (neutral.d_qk, neutral.d_v):
        parts.append(f"d{key.d_qk}-{key.d_v}")
    if key.page_block_size != neutral.page_block_size:
        parts.append(f"page{key.page_block_size}")
    if key.dtype != neutral.dtype:
        parts.append(SHORT.get(key.dtype, key.dtype))
    if key.kv_format != neutral.kv_format:
        parts.append(key.kv_format)
    if key.topk:
        parts.append(f"topk{key.topk}" + ("-length" if key.topk_length else ""))
    if key.extra_topk:
        tail = "-length" if key.extra_topk_length else ""
        parts.append(f"extra{key.extra_topk}{tail}-page{key.extra_page_block_size}")
    parts += [name for name in ("attn_sink", "batch_invariant") if getattr(key, name)]
    if key.kv_strides != neutral.kv_strides:
        parts.append(f"kv_{key.kv_strides}")
    if key.q_strides != neutral.q_strides:
        parts.append("q_strided")
    parts += [variant or family, *layout]
    return "-".join(parts)

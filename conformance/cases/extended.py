"""FP8 caches and sparse attention: families with levels of their own, all of them L4."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make
from flashmla_hub.conformance.model import Case

DIMS = {"v32": 576, "model1": 512}

ONE_OR_TWO_QUERIES: tuple[dict[str, Any], ...] = (
    {"h_q": 64},
    {"h_q": 16, "s_q": 2, "causal": True},
)


def sparse_fp8() -> list[Case]:
    result: list[Case] = []
    for layout, d_qk in DIMS.items():
        base: dict[str, Any] = {"op": "sparse_decode", "kv_format": layout, "d_qk": d_qk}

        def add(lengths: tuple[int, ...], words: str = "", family: str = "peaked",
                base: dict[str, Any] = base, level: str = "L2", **facts: Any) -> None:  # fmt: skip
            result.append(make("sparse", level, "C4.1 C3.2 C3.1", lengths, words=words,
                               family=family, **{**base, **facts}))  # fmt: skip

        add((128, 128), level="L1", h_q=128, topk=128)
        add((128, 128), level="L1", h_q=64, topk=128, family="flat")
        add((64, 64), h_q=64, s_q=2, topk=64, words="poison invalid duplicates")
        add((64, 10, 0), h_q=16, topk=64, topk_length=True, words="poison")
        add((40, 7), h_q=16, topk=64, topk_length=True)
        add((64, 64), h_q=16, topk=64, attn_sink=True, words="sink_inf")
        add((64, 30), h_q=16, topk=64, kv_strides="page_strided", words="poison invalid")
        result.append(
            make("sparse", "L2", "C4.1a C4.2 C3.2", (64, 10, 0, 0), family="peaked", h_q=64,
                 topk=64, topk_length=True, attn_sink=True, extra_topk=32,
                 extra_page_block_size=2, extra_topk_length=True, extra_lengths=(32, 3, 5, 0),
                 words="poison invalid", **base)
        )  # fmt: skip
        result.append(
            make("sparse", "L2", "C4.1a C3.2", (64, 64), family="peaked", h_q=16, topk=64,
                 extra_topk=32, extra_page_block_size=64, extra_lengths=(32, 32), **base)
        )  # fmt: skip
    result.append(
        make("sparse", "L2", "C3.2", (64, 64), family="peaked", h_q=16, op="sparse_decode",
             topk=64, kv_format="v32", words="free_scales")
    )  # fmt: skip
    return result


def optional() -> list[Case]:
    result = [
        make("sparse", "L2", "C4.1", (64, 20), family="peaked", h_q=16, op="sparse_decode",
             topk=64, words="poison invalid")
    ]  # fmt: skip
    for layout, d_qk in DIMS.items():
        for facts in ONE_OR_TWO_QUERIES:
            result.append(
                make("fp8", "L2", "C3.2 C3.1", (130, 0, 64, 65), family="peaked", words="poison",
                     kv_format=layout, d_qk=d_qk, optional="fp8 dense", **facts)
            )  # fmt: skip
    return result


def prefill() -> list[Case]:
    base: dict[str, Any] = {"op": "sparse_prefill", "page_block_size": 1, "family": "peaked"}
    return [
        make("prefill", "L1", "C4.3", (64,) * 6, h_q=128, topk=64, **base),
        make("prefill", "L2", "C4.3 C4.1", (64,) * 4, h_q=64, topk=64,
             words="poison invalid duplicates", **base),
        make("prefill", "L2", "C4.3 C4.2", (64, 20, 0, 1), h_q=16, topk=64, topk_length=True,
             attn_sink=True, words="poison sink_inf", **base),
        make("prefill", "L2", "C4.3", (64, 64), h_q=64, topk=64, d_qk=512, optional="head dims",
             **base),
    ]  # fmt: skip


def formats() -> list[Case]:
    return [
        make("formats", "L1", clauses, (100,), check=check, name=f"{layout}-{name}", h_q=16,
             kv_format=layout, d_qk=d_qk)
        for layout, d_qk in DIMS.items()
        for name, check, clauses in (
            ("quantise", "fp8_quantise", "C3.1"),
            ("round-trip", "fp8_round_trip", "C3.1"),
            ("append", "fp8_append", "C3.3"),
        )
    ] + [make("formats", "L2", "C3.0 C4.0", (64,), check="fp8_names", name="reserved-ids", h_q=16,
              op="sparse_decode", topk=64, kv_format="v32")]  # fmt: skip


CASES = (*sparse_fp8(), *optional(), *prefill(), *formats())

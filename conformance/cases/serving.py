"""L2: several queries, every head count, the extreme family, edge rows, poison, strided pools."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make
from flashmla_hub.conformance.model import Case

VALUES_OF = "C1.12 C1.7 C1.6 C1.1 C1.8 C1.9 C1.11"

ONE_OR_TWO_QUERIES: tuple[dict[str, Any], ...] = (
    {"h_q": 64},
    {"h_q": 16, "s_q": 2, "causal": True},
)


def queries() -> list[Case]:
    shapes = (
        (1, 1, False), (1, 5, False), (1, 12, False), (1, 96, False), (2, 128, True),
        (2, 64, False), (3, 16, True), (3, 12, False), (4, 32, True), (4, 16, False),
        (2, 1, True), (4, 96, True), (2, 16, True), (1, 40, False), (2, 24, True),
    )  # fmt: skip
    return [
        make("queries", "L2", VALUES_OF, (130, 64, 3, 193), family="peaked", s_q=s_q, h_q=h_q,
             causal=causal)
        for s_q, h_q, causal in shapes
    ] + [
        make("queries", "L2", VALUES_OF, (130, 65), s_q=2, h_q=64, causal=True),
        make("queries", "L2", VALUES_OF, (700,), family="peaked", s_q=2, h_q=32, causal=True,
             name="one-long"),
    ]  # fmt: skip


def extremes() -> list[Case]:
    result = []
    for variant in ("big_logits", "late_token", "equal"):
        for facts in ONE_OR_TWO_QUERIES:
            result.append(make("extreme", "L2", "C1.12", (260, 64, 131), family="extreme",
                               variant=variant, **facts))  # fmt: skip
    extreme: dict[str, Any] = {"family": "extreme", "h_q": 16}
    result += [
        make("extreme", "L2", "C1.12", (260, 64), variant="big_logits", dtype="float16",
             optional="fp16", **extreme),
        make("extreme", "L2", "C1.12", (260, 64), variant="late_token", dtype="float16",
             optional="fp16", **extreme),
        make("extreme", "L2", "C1.12", (260, 64), variant="equal", dtype="float32",
             optional="fp32", **extreme),
    ]  # fmt: skip
    return result


def edges() -> list[Case]:
    peaked: dict[str, Any] = {"family": "peaked"}
    return [
        make("edges", "L2", "C1.10", (130, 0, 64, 0), h_q=64, name="empty-rows", **peaked),
        make("edges", "L2", "C1.10", (0, 0), h_q=16, name="all-empty", **peaked),
        make("edges", "L2", "C1.10 C1.7", (130, 1, 2, 3, 0), h_q=16, s_q=4, causal=True,
             name="causal-shorter-than-s_q", **peaked),
        make("edges", "L2", "C1.10 C1.5", (130, 0, 64, 1), h_q=16, s_q=2, causal=True,
             words="poison", name="empty-rows-poisoned", **peaked),
        make("edges", "L2", "C1.15", (), h_q=64, name="batch-0"),
        make("edges", "L2", "C1.15 C1.10", (130, 0, 64, 0), h_q=16, words="negative_length",
             name="negative-length", **peaked),
        make("edges", "L2", "C1.15", (192, 64, 1), h_q=16, words="over_capacity",
             name="length-over-capacity", **peaked),
        make("edges", "L2", "C1.10 C1.3", (0, 0, 0), h_q=16, words="poison over_capacity",
             name="table-of-width-0", **peaked),
    ]  # fmt: skip


TAGS = "C1.5 C1.3 C1.11"


def poison() -> list[Case]:
    peaked: dict[str, Any] = {"family": "peaked", "words": "poison"}
    return [
        make("poison", "L2", TAGS, (130, 64, 1, 255), h_q=64, **peaked),
        make("poison", "L2", TAGS, (63, 65, 127, 129), h_q=128, name="page-edges", **peaked),
        make("poison", "L2", TAGS, (130, 64, 3), h_q=16, s_q=3, causal=True, **peaked),
        make("poison", "L2", TAGS, (400, 321, 130), h_q=32, family="peaked",
             words="poison shared_pages"),
        make("poison", "L2", TAGS, (130, 64, 5), h_q=16, page_block_size=16,
             optional="page sizes", **peaked),
        make("poison", "L2", TAGS, (130, 64, 5), h_q=16, dtype="float16",
             optional="fp16", **peaked),
        make("poison", "L2", TAGS, (130, 64, 5), h_q=16, dtype="float32",
             optional="fp32", **peaked),
        make("poison", "L2", TAGS, (130, 64, 5), h_q=16, d_qk=512, s_q=2, causal=True,
             optional="head dims", **peaked),
        make("poison", "L2", TAGS, (130, 64, 5), h_q=32, h_kv=2, s_q=2, causal=True,
             optional="h_kv > 1", **peaked),
    ]  # fmt: skip


def strided() -> list[Case]:
    peaked: dict[str, Any] = {"family": "peaked"}
    result = []
    for words in ("", "poison"):
        result += [
            make("strided", "L2", "C1.2", (130, 64, 200), h_q=32, kv_strides="page_strided",
                 words=words, **peaked),
            make("strided", "L2", "C1.2", (130, 64, 200), h_q=32, kv_strides="token_strided",
                 words=words, **peaked),
        ]  # fmt: skip
    result += [
        make("strided", "L2", "C1.1", (130, 64), h_q=16, s_q=2, causal=True,
             q_strides="token_strided", **peaked),
        make("strided", "L2", "C1.1 C1.2 C1.3", (130, 64), h_q=64, kv_strides="token_strided",
             q_strides="token_strided", words="table_strided", **peaked),
        make("strided", "L2", "C1.15", (130, 64), h_q=16, words="unaligned", optional="unaligned",
             **peaked),
    ]  # fmt: skip
    return result


def properties() -> list[Case]:
    peaked: dict[str, Any] = {"family": "peaked"}
    return [
        make("repeat", "L2", "C1.13", (300, 64, 7, 640), check="determinism", h_q=64,
             name="same-bits", **peaked),
        make("repeat", "L2", "C1.13", (130, 64, 7), check="determinism", h_q=16, s_q=2,
             causal=True, name="same-bits-sq2", **peaked),
        make("values", "L2", "C1.15", (130, 64), check="check_values", h_q=16,
             name="checked-on-request"),
        make("extra", "L2", "C1.13", (130, 64, 7), check="batch_invariance", h_q=16, s_q=2,
             causal=True, batch_invariant=True, optional="batch_invariant", **peaked),
    ]  # fmt: skip


CASES = (*queries(), *extremes(), *edges(), *poison(), *strided(), *properties())

"""L1: bf16, 576/512, one KV head, page 64, one query, 16 to 128 heads; and the claims' edges."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make
from flashmla_hub.conformance.model import Case

VALUES_OF = "C1.12 C1.1 C1.2 C1.3 C1.6 C1.7 C1.8 C1.9 C1.11"


def heads() -> list[Case]:
    lengths = {16: (200, 64, 131), 32: (97, 320), 64: (300, 1, 65, 128), 128: (190, 64, 257)}
    return [
        make("core", "L1", VALUES_OF, lengths[h], family=family, h_q=h)
        for h in (16, 32, 64, 128)
        for family in ("flat", "peaked")
    ]


def lengths() -> list[Case]:
    many = tuple(1 + (i * 37) % 150 for i in range(20))
    edges = (63, 64, 65, 127, 128, 129, 1, 2)
    return [
        make("lengths", "L1", VALUES_OF, edges, family="peaked", h_q=32, name="page-edges"),
        make("lengths", "L1", VALUES_OF, (1600,), family="peaked", h_q=128, name="one-long"),
        make("lengths", "L1", VALUES_OF, (1100,), family="flat", h_q=64, name="one-long-flat"),
        make("lengths", "L1", VALUES_OF, (900, 1, 33, 64, 640), family="peaked", h_q=64,
             name="lopsided"),
        make("lengths", "L1", VALUES_OF, many, family="peaked", h_q=16, name="many-rows"),
    ]  # fmt: skip


def layouts() -> list[Case]:
    return [
        make("pages", "L1", "C1.3 C1.12", (400, 321, 130), family="peaked", h_q=64,
             words="shared_pages", name="shared"),
        make("pages", "L1", "C1.3 C1.12", (64, 200, 129), family="peaked", h_q=32,
             words="table_strided", name="table-strided"),
        make("scale", "L1", "C1.6 C1.12", (150, 64), family="peaked", h_q=64, scale=0.1352,
             name="given"),
        make("scale", "L1", "C1.6 C1.12", (150, 64), family="flat", h_q=16, scale=1.0,
             name="one"),
        make("causal", "L1", "C1.7 C1.12", (150, 64), family="peaked", h_q=16,
             words="causal_flag", name="one-query"),
    ]  # fmt: skip


def metadata() -> list[Case]:
    small: dict[str, Any] = {"family": "peaked", "h_q": 16}
    return [
        make("metadata", "L1", "C2.1", (130, 64), check="metadata_forms", name="forms", **small),
        make("metadata", "L1", "C2.2", (130, 64), check="metadata_layers", name="layers", **small),
        make("metadata", "L1", "C2.2", (130, 64), check="metadata_other_shape",
             name="other-shape", **small),
        make("metadata", "L1", "C2.3 C1.4", (300, 64, 7), check="in_place", variant="copy",
             name="lengths-by-copy", **small),
        make("metadata", "L1", "C2.3 C1.4", (300, 64, 7), check="in_place", variant="data",
             name="lengths-by-data",
             optional="in-place data", **small),
        make("metadata", "L1", "C2.3", (300, 64, 7), check="two_calls", name="of-two-calls",
             **small),
        make("metadata", "L1", "C2.1a", (130, 64), check="metadata_tensors", name="tensors",
             optional="tensor metadata", **small),
    ]  # fmt: skip


INVALID = (
    "q_rank", "q_dtype", "kv_dtype", "kv_width", "table_dtype", "table_rows", "lengths_dtype",
    "lengths_shape", "heads", "scale_nan", "head_dim_v", "out_shape", "out_overlaps",
    "dense_with_sink", "inner_stride",
)  # fmt: skip


def refusals() -> list[Case]:
    """C5.1: wrong input. C5.2: what few ports claim, put to the port itself where it does not.

    Keys beyond every declaration come last: no claim can take them.
    """
    wrong = [
        make("invalid", "L1", "C5.1 C5.3", (70, 64), check="invalid", variant=name, h_q=16,
             name=name)
        for name in INVALID
    ]  # fmt: skip
    edges: dict[str, dict[str, Any]] = {
        "s_q-2": {"s_q": 2, "causal": True},
        "s_q-3-plain": {"s_q": 3},
        "s_q-7": {"s_q": 7, "causal": True},
        "h_q-1": {"h_q": 1},
        "h_q-12": {"h_q": 12},
        "h_q-32": {"h_q": 32},
        "h_q-64": {"h_q": 64},
        "h_q-128": {"h_q": 128},
        "h_q-96": {"h_q": 96},
        "h_q-200": {"h_q": 200},
        "h_kv-2": {"h_kv": 2},
        "fp16": {"dtype": "float16"},
        "fp32": {"dtype": "float32"},
        "page-1": {"page_block_size": 1},
        "page-16": {"page_block_size": 16},
        "page-48": {"page_block_size": 48},
        "page-256": {"page_block_size": 256},
        "d-512": {"d_qk": 512},
        "d-320": {"d_qk": 320, "d_v": 256},
        "d-128": {"d_qk": 128, "d_v": 64},
        "kv-page-strided": {"kv_strides": "page_strided"},
        "kv-token-strided": {"kv_strides": "token_strided"},
        "q-strided": {"q_strides": "token_strided"},
        "unaligned": {"words": "unaligned"},
        "fp8-v32": {"kv_format": "v32"},
    }
    claims = [
        make("claims", "L1", "C5.2 C5.1 C5.3", (70, 64), check="refusal", family="peaked",
             name=name, **{"h_q": 16, **facts})
        for name, facts in edges.items()
    ]  # fmt: skip
    sparse: dict[str, Any] = {"op": "sparse_decode", "h_q": 64, "topk": 64}
    claims += [
        make("claims", "L1", "C5.2 C5.1", (64, 64), check="refusal", family="peaked",
             name="sparse", kv_format="v32", **sparse),
        make("claims", "L1", "C5.2 C5.1", (64, 64), check="refusal", family="peaked",
             name="sparse-bf16", **sparse),
        make("claims", "L1", "C5.2 C5.1", (64, 20), check="refusal", family="peaked",
             name="sparse-sink", kv_format="v32", topk_length=True, attn_sink=True, **sparse),
        make("claims", "L1", "C5.2 C5.1", (64,), check="refusal", variant="unknown",
             kv_format="v41", name="unknown-layout"),
        make("claims", "L1", "C5.2 C5.1", (64,), check="refusal", variant="unknown",
             op="dense_prefill", name="unknown-op"),
        make("claims", "L1", "C5.2 C5.1", (64,), check="refusal", variant="unknown",
             dtype="float64", name="unknown-dtype"),
        make("claims", "L1", "C5.3", (70, 64), check="after_error", family="peaked", h_q=16,
             name="works-after-an-error"),
    ]  # fmt: skip
    return wrong + claims


def extras() -> list[Case]:
    """What the base does not ask for; a backend that claims it must do it."""
    result: list[Case] = []
    groups: dict[str, list[dict[str, Any]]] = {
        "fp16": [{"dtype": "float16"}, {"dtype": "float16", "h_q": 128}],
        "fp32": [{"dtype": "float32"}, {"dtype": "float32", "h_q": 128}],
        "page sizes": [{"page_block_size": n} for n in (1, 16, 32, 128, 256)],
        "h_kv > 1": [{"h_kv": 2, "h_q": 32}, {"h_kv": 4, "h_q": 16}],
        "head dims": [{"d_qk": 512}, {"d_qk": 320, "d_v": 256}],
    }
    for name, choices in groups.items():
        for facts in choices:
            for family in ("flat", "peaked"):
                result.append(
                    make("extra", "L1", "C1.12 C1.1 C1.6 C1.8", (130, 64, 257), family=family,
                         optional=name, **{"h_q": 16, **facts})
                )  # fmt: skip
    result.append(
        make("extra", "L1", "C1.13", (300, 64, 7, 129), check="batch_invariance",
             family="peaked", optional="batch_invariant", h_q=32, batch_invariant=True)
    )  # fmt: skip
    return result


CASES = (*heads(), *lengths(), *layouts(), *metadata(), *refusals(), *extras())

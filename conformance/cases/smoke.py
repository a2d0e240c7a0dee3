"""L0: is the harness wired? A failure here says "your harness is wrong", not "your kernel"."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make

SPARSE: dict[str, Any] = {"op": "sparse_decode", "h_q": 64, "topk": 64}

CASES = (
    make("smoke", "L0", "C5.2", check="harness", name="claims-readable"),
    make("smoke", "L0", "C1.8", (64,), h_q=128, name="one-call"),
    make("smoke", "L0", "C4.1", (64,), name="sparse", **SPARSE),
    make("smoke", "L0", "C4.1 C3.2", (64,), name="sparse-v32", kv_format="v32", **SPARSE),
    make("smoke", "L0", "C4.1 C3.2", (64,), name="sparse-model1", kv_format="model1", d_qk=512,
         **SPARSE),
    make("smoke", "L0", "C4.3", (64,) * 2, name="prefill", op="sparse_prefill", h_q=64, topk=64,
         page_block_size=1),
)  # fmt: skip

"""L3: far addresses, capture and compile, merged states, a thousand calls, streams."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make

PEAKED: dict[str, Any] = {"family": "peaked", "h_q": 16}

CASES = (
    make("offsets", "L3", "C1.14", (250,), variant="offset_2g_elements", **PEAKED),
    make("offsets", "L3", "C1.14 C1.2", (100,), variant="offset_4g_bytes",
         kv_strides="page_strided", **PEAKED),
    make("compile", "L3", "C6.2", (130, 64), check="compile", name="fullgraph", **PEAKED),
    make("compile", "L3", "C6.2", (130, 64), check="compile_batches", name="batch-changes",
         **PEAKED),
    make("merge", "L3", "C7.1", (600, 70), check="merge", name="lopsided", **PEAKED),
    make("merge", "L3", "C7.1 C7.2", (300, 70, 2), check="merge", s_q=2, causal=True,
         name="lopsided-folded", **PEAKED),
    make("merge", "L3", "C7.1", (130, 64), check="merge_empty", name="empty-parts", **PEAKED),
    make("soak", "L3", "C5.3", (70, 5), check="soak", name="1000-calls", **PEAKED),
    make("capture", "L3", "C1.4 C6.1", (130, 64), check="host_reads", name="no-host-reads",
         optional="no host reads", **PEAKED),
    make("capture", "L3", "C6.1 C2.3", (300, 64, 7), check="graph", name="replay", **PEAKED),
    make("capture", "L3", "C6.1", (130, 64), check="graph", variant="first_seen",
         name="first-seen", family="peaked", h_q=112),
    make("streams", "L3", "C6.1", (300, 64, 7), check="two_streams", name="two", **PEAKED),
)  # fmt: skip

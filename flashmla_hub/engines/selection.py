"""What the hub answers an engine that asks "can you?": always its own ``explain``, never a second
list that could drift away from the backends' declarations."""

from __future__ import annotations

import flashmla_hub as hub
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

# Latent width (nope + rope) -> head_dim_v, for the widths engines ask about.
HEAD_DIM_V = {576: 512, 512: 512, 320: 256}


def decode_key(
    head_size: int = 576,
    *,
    dtype: str = "bfloat16",
    page_block_size: int = 64,
    h_q: int = 16,
    s_q: int = 1,
    batch_invariant: bool = False,
) -> KernelKey:
    """The KernelKey of a dense decode call as engines make it."""
    return KernelKey(
        op=DENSE_DECODE,
        s_q=s_q,
        h_q=h_q,
        d_qk=head_size,
        d_v=HEAD_DIM_V.get(head_size, head_size),
        page_block_size=page_block_size,
        dtype=dtype,
        causal=s_q > 1,
        batch_invariant=batch_invariant,
    )


def sparse_key(
    head_size: int = 576,
    *,
    kv_format: str = "dense",
    dtype: str = "bfloat16",
    page_block_size: int = 64,
    h_q: int = 16,
    topk: int = 2048,
) -> KernelKey:
    """The KernelKey of a sparse decode call as engines make it: each query its own request."""
    return KernelKey(
        op=SPARSE_DECODE,
        h_q=h_q,
        d_qk=head_size,
        d_v=HEAD_DIM_V.get(head_size, head_size),
        page_block_size=page_block_size,
        dtype=dtype,
        kv_format=kv_format,
        topk=topk,
    )


def prefill_key(
    head_size: int = 576,
    *,
    dtype: str = "bfloat16",
    h_q: int = 16,
    topk: int = 2048,
    topk_length: bool = False,
) -> KernelKey:
    """The KernelKey of a sparse prefill call as engines make it."""
    return KernelKey(
        op=SPARSE_PREFILL,
        h_q=h_q,
        d_qk=head_size,
        d_v=HEAD_DIM_V.get(head_size, head_size),
        page_block_size=1,
        dtype=dtype,
        topk=topk,
        topk_length=topk_length,
    )


def refusal(key: KernelKey) -> str | None:
    """None when a backend takes ``key``, else one line with every backend's reasons."""
    decision = hub.explain(key)
    if decision.selected is not None:
        return None
    reasons = [f"{c.backend}: {'; '.join(c.reasons)}" for c in decision.candidates]
    return f"flashmla_hub: no backend takes {key.summary()} ({' | '.join(reasons)})"


def accepted(key: KernelKey) -> bool:
    return hub.explain(key).selected is not None


def best_page_size(sizes: tuple[int, ...]) -> int | None:
    """The page size whose selected backend ranks highest; the first of equals."""
    best: tuple[int, int] | None = None
    for size in sizes:
        selected = hub.explain(decode_key(page_block_size=size)).candidate
        if selected is not None and (best is None or selected.rank > best[0]):
            best = (selected.rank, size)
    return None if best is None else best[1]


def captures(key: KernelKey) -> bool:
    """Whether the backend that ``key`` selects claims CUDA graphs in all it declares for the op."""
    decision = hub.explain(key)
    if decision.selected is None:
        return False
    declared = hub.get_backend(decision.selected).capabilities(decision.device)
    here = [c for c in declared if c.op == key.op and not c.device_reasons(decision.device)]
    return bool(here) and all(c.cuda_graph for c in here)

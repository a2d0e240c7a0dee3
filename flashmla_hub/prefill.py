"""``flash_mla_sparse_fwd``: sparse prefill (contract C4.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub import calls, compiled, config, registry, validation


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse MLA attention of many queries over one flat KV array (prefill).

    Args:
        q: (s_q, h_q, d_qk) bfloat16, float16 or float32, last dimension contiguous.
        kv: (s_kv, h_kv, d_qk), the dtype of q. V is the first ``d_v`` columns.
        indices: (s_q, h_kv, topk) int32 rows of kv; negative or >= s_kv is ignored, a duplicate
            counts as often as it occurs.
        sm_scale: finite float.
        attn_sink: (h_q,) float32; out *= sigmoid(lse - sink).
        topk_length: (s_q,) int32, how many entries of a query count.
        out: (s_q, h_q, d_v) in the dtype of q, written in place; may not overlap an input.
        backend, batch_invariant: as for ``flash_mla_with_kvcache``.

    Returns:
        out (s_q, h_q, d_v); max_logits (s_q, h_q) float32, the largest scaled logit; lse
        (s_q, h_q) float32, natural. A query with no valid entry gets 0, -inf and +inf.

    Raises:
        InvalidRequestError, NoBackendError, NotSupportedError: as ``flash_mla_with_kvcache``.
    """
    if torch.compiler.is_compiling():
        return compiled.prefill(
            q, kv, indices, sm_scale, d_v, attn_sink, topk_length, out, backend, batch_invariant
        )
    return prefill(
        q, kv, indices, sm_scale, d_v, attn_sink, topk_length, out, backend, batch_invariant
    )


def prefill(
    q: Any, kv: Any, indices: Any, sm_scale: Any, d_v: Any, attn_sink: Any, topk_length: Any,
    out: Any, backend: Any, batch_invariant: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The eager path; also what the op of torch.compile runs."""

    tail = (backend, config.changed(), registry.loaded())
    try:
        tensors = (q, kv, indices, attn_sink, topk_length)
        low_bits = (q.data_ptr() | kv.data_ptr()) & 15
        scalars = (sm_scale, d_v, batch_invariant)
        facts: tuple[Any, ...] = (
            "prefill", *map(calls.tensor_facts, tensors), low_bits, scalars, tail,
        )  # fmt: skip
        prepared = calls.known(facts)
        grad = q.requires_grad or kv.requires_grad
    except (AttributeError, TypeError):  # not a tensor, or not hashable: the checks say which
        prepared, grad, facts, low_bits = None, False, (), 1
    if prepared is None or (grad and torch.is_grad_enabled()):

        def check() -> validation.Checked:
            return validation.prefill(
                q, kv, indices, sm_scale, d_v, attn_sink, topk_length,
                batch_invariant=batch_invariant, aligned=low_bits == 0,
            )  # fmt: skip

        prepared = calls.prepare(facts, check, q, backend)
    checked = prepared.checked
    s_q, h_q, _ = q.shape
    if out is not None:
        validation.output("out", out, (s_q, h_q, checked.key.d_v), q.dtype, q)
        inputs = {"q": q, "kv": kv, "indices": indices, "attn_sink": attn_sink,
                  "topk_length": topk_length}  # fmt: skip
        validation.no_overlap({"out": out}, inputs)
    if prepared.route is None:
        result = q.new_empty((s_q, h_q, checked.key.d_v)) if out is None else out
        rows = q.new_empty((s_q, h_q), dtype=torch.float32)
        return result.zero_(), rows.fill_(float("-inf")), torch.full_like(rows, float("inf"))
    got, max_logits, lse = prepared.kernel.run(
        q, kv, indices, checked.scale, calls.contiguous_or_none(out), None, None, topk_length,
        attn_sink, None,
    )  # fmt: skip
    return calls.store(got, out), max_logits, lse

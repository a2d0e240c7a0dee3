"""``flash_mla_sparse_fwd``: sparse prefill (contract C4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmla_hub import calls, compiled, tracing, validation
from flashmla_hub.call import PrefillArguments, SparsePrefill


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
        sm_scale: from -1e30 to 1e30.
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
    args = PrefillArguments(
        q, kv, indices, sm_scale, d_v, attn_sink, topk_length, out, backend, batch_invariant
    )
    if torch.compiler.is_compiling() or tracing.watched():
        return compiled.prefill(args)
    return prefill(args)


def prefill(args: PrefillArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The eager path; also what the ops of torch.compile run."""
    prepared, real = calls.prepare(args, validation.prefill)
    if prepared is None:
        return compiled.prefill(args)
    q = real.q
    if args.out is not None:
        validation.no_overlap(args)
    if prepared.route is None:
        s_q, h_q, _ = q.shape
        rows = q.new_full((s_q, h_q), float("-inf"), dtype=torch.float32)
        empty = q.new_zeros((s_q, h_q, prepared.checked.key.d_v))
        return calls.store(empty, args.out), rows, torch.full_like(rows, float("inf"))
    out = calls.direct(args.out)
    got, max_logits, lse = prepared.kernel.run(
        SparsePrefill(
            q, real.kv, real.indices, prepared.checked.scale, out, None, None, real.topk_length,
            real.attn_sink, None,
        )
    )  # fmt: skip
    return calls.store(got, args.out), max_logits, lse

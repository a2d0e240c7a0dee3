"""``flash_mla_with_kvcache``: the public function, its fast path and its general path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from flashmla_hub import calls, compiled, config, registry, validation
from flashmla_hub.calls import Fast, Prepared
from flashmla_hub.errors import InvalidRequestError, NotSupportedError
from flashmla_hub.metadata import SchedMeta


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: SchedMeta | Tensor | None = None,
    num_splits: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool | None = None,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
    *,
    out: Tensor | None = None,
    lse_out: Tensor | None = None,
    backend: str | None = None,
    batch_invariant: bool = False,
    check_values: bool = False,
    kv_format: str | None = None,
    enable_batch_invariant: bool | None = None,
    use_legacy: bool | None = None,
    descale_q: Tensor | None = None,
    descale_k: Tensor | None = None,
    indexer_topk: int = 0,
) -> tuple[Tensor, Tensor]:
    """MLA decode attention over a paged latent KV cache, on the backend that fits the call.

    The signature is FlashMLA's, of all its published generations; the keywords after
    ``extra_topk_length`` are the hub's and those of later generations. docs/contract.md says what
    every clause means.

    Args:
        q: (batch, s_q, h_q, d_qk) bfloat16, float16 or float32, last dimension contiguous.
        k_cache: (num_blocks, page_block_size, h_kv, d_qk) in the dtype of q; or, for an FP8 layout,
            (num_blocks, page_block_size, 1, bytes_per_token) in a 1-byte dtype. V is the first
            ``head_dim_v`` columns of K. Pages may be strided.
        block_table: (batch, max_blocks_per_seq) int32. Entries past a row's pages are never used.
        cache_seqlens: (batch,) int32, on the device. A row of length 0 gets out 0, lse +inf.
        head_dim_v: 512 for d_qk 576 and 512, 256 for d_qk 320.
        tile_scheduler_metadata, num_splits: what ``get_mla_metadata`` returned, or None.
        softmax_scale: finite; None means d_qk ** -0.5.
        causal: key j is visible to query t iff j <= cache_seqlen - s_q + t.
        is_fp8_kvcache: None follows the dtype of k_cache.
        indices: (batch, s_q, topk) int32 slots page * page_block_size + offset: sparse attention;
            block_table and cache_seqlens are then ignored. Entries that are negative or past the
            cache are ignored.
        attn_sink: (h_q,) float32; out *= sigmoid(lse - sink).
        extra_k_cache, extra_indices_in_kvcache, extra_topk_length: a second cache, attended
            together with the first.
        topk_length: (batch,) int32, how many entries of indices count.
        out, lse_out: written in place; they may not overlap an input.
        backend: name of the backend to use; never falls back to another.
        batch_invariant: only backends whose rows do not depend on the rest of the batch.
        check_values: debug: read lengths and page ids back and check them. Synchronises.
        kv_format: id of the FP8 layout ("v32", "model1"); None: FlashMLA's default for d_qk.
        enable_batch_invariant, use_legacy, descale_q, descale_k, indexer_topk: accepted for code
            written against later FlashMLA generations; what has no meaning here is refused.

    Returns:
        out (batch, s_q, h_q, head_dim_v) in the dtype of q, and lse (batch, h_q, s_q) float32, the
        natural logarithm of the sum of exp of the scaled logits.

    Raises:
        InvalidRequestError: an argument is wrong whatever the backend.
        NoBackendError: no backend can serve the call; the message has each one's reasons.
        NotSupportedError: the backend asked for cannot do it, or nothing here has that feature.
    """
    meta = tile_scheduler_metadata
    if is_compiling():
        _later_generations(use_legacy, descale_q, descale_k, indexer_topk)
        return compiled.decode(
            q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal,
            is_fp8_kvcache, indices, attn_sink, extra_k_cache, extra_indices_in_kvcache,
            topk_length, extra_topk_length, out, lse_out, backend,
            batch_invariant or bool(enable_batch_invariant), kv_format,
        )  # fmt: skip
    # Identity for what a step's layers share, equality for the rest; see calls.Fast.
    if (
        type(meta) is SchedMeta
        and (fast := meta.fast) is not None
        and (
            block_table is fast.block_table
            and cache_seqlens is fast.cache_seqlens
            and (
                q.shape, q.is_contiguous() or q.stride(), q.dtype, q.device,
                k_cache.shape, k_cache.is_contiguous() or k_cache.stride(), k_cache.dtype,
                k_cache.device,
                head_dim_v, softmax_scale, causal, is_fp8_kvcache, kv_format, batch_invariant,
                indices, attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length,
                extra_topk_length, out, lse_out, check_values, enable_batch_invariant,
                use_legacy, descale_q, descale_k, indexer_topk,
                backend, config.changed(), registry.loaded(),
            ) == fast.facts
            and (q.data_ptr() | k_cache.data_ptr()) & 15 == fast.low_bits
            and not ((q.requires_grad or k_cache.requires_grad) and torch.is_grad_enabled())
        )
    ):  # fmt: skip
        if (repeat := fast.repeat) is not None:
            return repeat(q, k_cache, block_table, cache_seqlens)  # type: ignore[no-any-return]
        kernel = fast.kernel
        plan = calls.plan_for(kernel, meta, block_table, cache_seqlens) if kernel.plans else None
        return kernel.run(  # type: ignore[no-any-return]
            q, k_cache, block_table, cache_seqlens, fast.scale, None, None, plan
        )
    if use_legacy or descale_q is not None or descale_k is not None or indexer_topk:
        _later_generations(use_legacy, descale_q, descale_k, indexer_topk)
    return decode(
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal,
        is_fp8_kvcache, indices, attn_sink, extra_k_cache, extra_indices_in_kvcache,
        topk_length, extra_topk_length, out, lse_out, backend,
        enable_batch_invariant or batch_invariant, kv_format, meta, check_values,
    )  # fmt: skip


def decode(
    q: Any, k_cache: Any, block_table: Any, cache_seqlens: Any, head_dim_v: Any,
    softmax_scale: Any, causal: Any, is_fp8_kvcache: Any, indices: Any, attn_sink: Any,
    extra_k_cache: Any, extra_indices: Any, topk_length: Any, extra_topk_length: Any,
    out: Any, lse_out: Any, backend: Any, batch_invariant: Any, kv_format: Any,
    meta: Any = None, check_values: Any = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The general path, dense or sparse; also what the ops of torch.compile run."""
    tail = (backend, config.changed(), registry.loaded())
    scalars = (head_dim_v, softmax_scale, causal, is_fp8_kvcache, kv_format, batch_invariant)
    try:
        if indices is attn_sink is topk_length is extra_k_cache is extra_indices is None:
            facts: tuple[Any, ...] = (
                q.shape, q.stride(), q.dtype, q.device,
                k_cache.shape, k_cache.stride(), k_cache.dtype, k_cache.device,
                block_table.shape, block_table.stride(), block_table.dtype, block_table.device,
                cache_seqlens.shape, cache_seqlens.stride(), cache_seqlens.dtype,
                cache_seqlens.device, extra_topk_length,
                (q.data_ptr() | k_cache.data_ptr()) & 15, scalars, tail,
            )  # fmt: skip
        else:
            tensors = (
                q, k_cache, indices, attn_sink, topk_length, extra_k_cache, extra_indices,
                extra_topk_length,
            )  # fmt: skip
            low_bits = (q.data_ptr() | k_cache.data_ptr()) & 15
            facts = (*map(calls.tensor_facts, tensors), low_bits, scalars, tail)
        prepared = calls.known(facts)
        grad = q.requires_grad or k_cache.requires_grad
    except (AttributeError, TypeError):  # not a tensor, or not hashable: the checks say which
        prepared, grad, facts = None, False, ()
    if prepared is None or (grad and torch.is_grad_enabled()):

        def check() -> validation.Checked:
            return validation.decode(
                q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal,
                is_fp8_kvcache, indices, attn_sink, extra_k_cache, extra_indices, topk_length,
                extra_topk_length, batch_invariant=batch_invariant, layout=kv_format,
                aligned=isinstance(q, Tensor) and isinstance(k_cache, Tensor)
                and (q.data_ptr() | k_cache.data_ptr()) & 15 == 0,
            )  # fmt: skip

        prepared = calls.prepare(facts, check, q, backend)
    checked = prepared.checked
    if meta is not None:
        if type(meta) is SchedMeta:
            meta.check(checked.batch, checked.key)
        elif not (isinstance(meta, Tensor) and meta.dtype == torch.int32):
            raise InvalidRequestError(
                "tile_scheduler_metadata",
                type(meta).__name__,
                "what get_mla_metadata returned (SchedMeta or an int32 tensor), or None",
            )
    if out is not None or lse_out is not None:
        inputs = {
            "k_cache": k_cache, "block_table": block_table, "cache_seqlens": cache_seqlens,
            "indices": indices, "attn_sink": attn_sink, "extra_k_cache": extra_k_cache,
            "extra_indices_in_kvcache": extra_indices, "topk_length": topk_length,
            "extra_topk_length": extra_topk_length,
        }  # fmt: skip
        if indices is not None:
            inputs |= {"block_table": None, "cache_seqlens": None}
        calls.check_outputs(checked, q, out, lse_out, inputs)
    if check_values and indices is None:
        validation.values(checked, k_cache, block_table, cache_seqlens)
    if prepared.route is None:
        return calls.empty_decode(checked, q, out, lse_out)  # type: ignore[no-any-return]
    sched = meta if type(meta) is SchedMeta else None
    kernel, scale = prepared.kernel, checked.scale
    out_direct, lse_direct = calls.contiguous_or_none(out), calls.contiguous_or_none(lse_out)
    if indices is None:
        plan = calls.plan_for(kernel, sched, block_table, cache_seqlens) if kernel.plans else None
        if sched is not None and sched.fast is None:
            sched.fast = _snapshot(
                prepared, q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale,
                causal, is_fp8_kvcache, kv_format, batch_invariant, backend,
            )  # fmt: skip
        got = kernel.run(
            q, k_cache, block_table, cache_seqlens, scale, out_direct, lse_direct, plan
        )
    else:
        plan = calls.plan_for(kernel, sched, None, None) if kernel.plans else None
        got = kernel.run(
            q, k_cache, indices, scale, out_direct, lse_direct, topk_length, attn_sink,
            extra_k_cache, extra_indices, extra_topk_length, plan,
        )  # fmt: skip
    if out is None and lse_out is None:
        return got  # type: ignore[no-any-return]
    return calls.store(got[0], out), calls.store(got[1], lse_out)


def _snapshot(
    prepared: Prepared, q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
    head_dim_v: Any, softmax_scale: Any, causal: Any, is_fp8: Any, kv_format: Any,
    batch_invariant: Any, backend: str | None,
) -> Fast:  # fmt: skip
    """The facts of a call whose optional arguments are all absent; others take the slow path."""
    facts = (
        q.shape, q.is_contiguous() or q.stride(), q.dtype, q.device,
        k_cache.shape, k_cache.is_contiguous() or k_cache.stride(), k_cache.dtype, k_cache.device,
        head_dim_v, softmax_scale, causal, is_fp8, kv_format, batch_invariant,
        None, None, None, None, None, None, None, None, False, None, None, None, None, 0,
        backend, config.changed(), registry.loaded(),
    )  # fmt: skip
    low_bits = (q.data_ptr() | k_cache.data_ptr()) & 15
    return Fast(facts, low_bits, q, k_cache, block_table, cache_seqlens, prepared)


def _later_generations(use_legacy: Any, descale_q: Any, descale_k: Any, indexer_topk: Any) -> None:
    """``use_legacy`` chooses between kernels of one package and means nothing here; the others
    change the result and are refused by name (contract C2.1b)."""
    for name, value in (("descale_q", descale_q), ("descale_k", descale_k)):
        if value is not None:
            raise NotSupportedError("flashmla_hub", name, "a tensor", "None")
    if indexer_topk:
        raise NotSupportedError("flashmla_hub", "indexer_topk", indexer_topk, "0")

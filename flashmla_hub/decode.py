"""``flash_mla_with_kvcache``: the public function, its fast path and its general path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from flashmla_hub import calls, compiled, config, fast, registry, tracing, validation
from flashmla_hub.call import DecodeArguments, DenseDecode, SparseDecode
from flashmla_hub.checks import describe
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.metadata import SchedMeta

_new = tuple.__new__


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
            (num_blocks, page_block_size, 1, bytes_per_token) in float8_e4m3fn, uint8 or int8. V is
            the first ``head_dim_v`` columns of K. Pages may be strided.
        block_table: (batch, max_blocks_per_seq) int32. Entries past a row's pages are never used.
        cache_seqlens: (batch,) int32, on the device. A row of length 0 gets out 0, lse +inf.
        head_dim_v: 512 for d_qk 576 and 512, 256 for d_qk 320.
        tile_scheduler_metadata, num_splits: what ``get_mla_metadata`` returned, or None.
        softmax_scale: from -1e30 to 1e30; None means d_qk ** -0.5.
        causal: key j is visible to query t iff j <= cache_seqlen - s_q + t.
        is_fp8_kvcache: None follows the dtype of k_cache.
        indices: (batch, s_q, topk) int32 slots page * page_block_size + offset: sparse attention;
            block_table and cache_seqlens are then ignored. Entries that are negative or past the
            cache are ignored.
        attn_sink: (h_q,) float32; out *= sigmoid(lse - sink).
        extra_k_cache, extra_indices_in_kvcache, extra_topk_length: a second cache, attended
            together with the first.
        topk_length: (batch,) int32, how many entries of indices count.
        out, lse_out: written in place; they may not overlap an input. A call that raises leaves
            them as they were, unless it is the kernel itself that fails.
        backend: name of the backend to use; never falls back to another.
        batch_invariant: only backends whose rows do not depend on the rest of the batch.
        check_values: debug: read lengths and page ids back and check them. Synchronises.
        kv_format: id of the layout of a quantised cache (``flashmla_hub.kv_format.IDS``: "v32",
            "model1", "v32_no_rope", "v41", "fp8"; "v41+v41_fp4" with an extra cache of e2m1);
            None: FlashMLA's default for d_qk.
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
    # The later layers of a step; see flashmla_hub.fast. Dynamo does not look inside.
    if (
        not is_dynamo_compiling()
        and type(meta) is SchedMeta
        and (known := meta.fast) is not None
        # identity: what a step's layers share, and what has few values
        and block_table is known.block_table
        and cache_seqlens is known.cache_seqlens
        and causal is known.causal
        and is_fp8_kvcache is known.is_fp8_kvcache
        and batch_invariant is known.batch_invariant
        and indices is attn_sink is extra_k_cache is extra_indices_in_kvcache is None
        and topk_length is extra_topk_length is out is lse_out is None
        and enable_batch_invariant is use_legacy is None
        and descale_q is descale_k is None
        and check_values is False
        and (
            type(head_dim_v), head_dim_v, type(softmax_scale), softmax_scale, kv_format, backend,
            type(indexer_topk), indexer_topk, config.changed(), registry.loaded(),
        ) == known.facts
        and known.same_tensors(q, k_cache, block_table, cache_seqlens)
        and (q.data_ptr() | k_cache.data_ptr()) & 15 == known.low_bits
        and tracing.modes() == 0
        and not tracing.dual_level()
    ):  # fmt: skip
        if (repeat := known.repeat) is not None:
            return repeat(q, k_cache, block_table, cache_seqlens)  # type: ignore[no-any-return]
        plan = None
        if known.plans:
            plan = calls.plan_for(known.kernel, meta, block_table, cache_seqlens)
        return known.run(  # type: ignore[no-any-return]
            _new(DenseDecode, (
                q, k_cache, block_table, cache_seqlens, known.scale, None, None, plan, None, None,
            ))
        )  # fmt: skip
    given = (
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, is_fp8_kvcache,
        indices, attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length,
        extra_topk_length, out, lse_out, backend, batch_invariant, check_values, kv_format,
        enable_batch_invariant, use_legacy, descale_q, descale_k, indexer_topk,
    )  # fmt: skip
    # The class itself takes 1.3 us for as many fields; Dynamo knows only that.
    compiling = is_compiling()
    args = DecodeArguments(*given) if compiling else _new(DecodeArguments, given)
    if meta is not None and type(meta) is not SchedMeta:
        _check_tensor_metadata(meta)
    if compiling or tracing.watched():
        return compiled.decode(args)
    return decode(args, meta if type(meta) is SchedMeta else None)


def decode(args: DecodeArguments, meta: SchedMeta | None = None) -> tuple[Tensor, Tensor]:
    """The general path, dense or sparse; also what the ops of torch.compile run."""
    prepared, real = calls.prepare(args, validation.decode)
    if prepared is None:
        return compiled.decode(args)
    checked = prepared.checked
    if meta is not None:
        meta.check(checked.batch, checked.key)
    if args.out is not None or args.lse_out is not None:
        validation.no_overlap(args)
    if args.check_values is True and args.indices is None:
        assert real.block_table is not None
        assert real.cache_seqlens is not None
        validation.values(checked, real.k_cache, real.block_table, real.cache_seqlens)
    if prepared.route is None:
        got = calls.empty_decode(checked, args.q)
    else:
        got = _run(prepared, real, meta)
        if meta is not None and meta.fast is None:
            meta.fast = fast.snapshot(prepared, args)
    if args.out is None and args.lse_out is None:
        return got
    return calls.store(got[0], args.out), calls.store(got[1], args.lse_out)


def _run(
    prepared: calls.Prepared, args: DecodeArguments, meta: SchedMeta | None
) -> tuple[Tensor, Tensor]:
    kernel, scale = prepared.kernel, prepared.checked.scale
    out = calls.direct(args.out)
    lse = args.lse_out if calls.writable(args.lse_out) else None
    if lse is not None and not lse.is_contiguous():
        lse = None
    if args.indices is None:
        table, lens = args.block_table, args.cache_seqlens
        assert table is not None
        assert lens is not None
        plan = calls.plan_for(kernel, meta, table, lens) if kernel.plans else None
        return kernel.run(  # type: ignore[no-any-return]
            DenseDecode(
                args.q, args.k_cache, table, lens, scale, out, lse, plan, args.descale_q,
                args.descale_k,
            )
        )  # fmt: skip
    plan = calls.plan_for(kernel, meta, None, None) if kernel.plans else None
    return kernel.run(  # type: ignore[no-any-return]
        SparseDecode(
            args.q, args.k_cache, args.indices, scale, out, lse, args.topk_length, args.attn_sink,
            args.extra_k_cache, args.extra_indices_in_kvcache, args.extra_topk_length, plan,
            args.descale_q, args.descale_k,
        )
    )  # fmt: skip


def _check_tensor_metadata(meta: Any) -> None:
    if not (isinstance(meta, Tensor) and meta.dtype == torch.int32):
        raise InvalidRequestError(
            "tile_scheduler_metadata",
            describe(meta),
            "what get_mla_metadata returned (SchedMeta or an int32 tensor), or None",
        )

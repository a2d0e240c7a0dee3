"""The hub's calls as torch ops, for torch.compile.

The ops take tensors, scalars and the name from ``backend=`` only; metadata objects are dropped.
Shapes are checked in the fake implementation, while tracing; the backend is selected inside the
real one, at run time. ``torch.library.Library`` is used as it is, since ``custom_op`` adds
14 to 26 us to a call; eager calls do not come here at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub import validation

_OPTIONS = "str? backend, bool batch_invariant"
_DENSE = (
    "Tensor q, Tensor k_cache, Tensor block_table, Tensor cache_seqlens, int head_dim_v, "
    f"float? softmax_scale, bool causal, bool? is_fp8_kvcache, str? kv_format, {_OPTIONS}"
)
_SPARSE = (
    "Tensor q, Tensor k_cache, Tensor indices, int head_dim_v, float? softmax_scale, "
    "bool? is_fp8_kvcache, Tensor? attn_sink, Tensor? extra_k_cache, Tensor? extra_indices, "
    f"Tensor? topk_length, Tensor? extra_topk_length, str? kv_format, {_OPTIONS}"
)
_PREFILL = (
    "Tensor q, Tensor kv, Tensor indices, float sm_scale, int d_v, Tensor? attn_sink, "
    f"Tensor? topk_length, {_OPTIONS}"
)
_INTO = ", Tensor(a!) out, Tensor(b!) lse_out"

_library = torch.library.Library("flashmla_hub", "DEF")


def _define(name: str, schema: str, returns: str, real: Any, fake: Any) -> None:
    _library.define(f"{name}({schema}) -> {returns}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flashmla_hub::{name}", fake, lib=_library)


def _dense(
    q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor, head_dim_v: int,
    softmax_scale: float | None, causal: bool, is_fp8: bool | None, kv_format: str | None,
    backend: str | None, batch_invariant: bool, out: Tensor | None = None,
    lse_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from flashmla_hub.decode import decode

    return decode(
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, is_fp8, None,
        None, None, None, None, None, out, lse_out, backend, batch_invariant, kv_format,
    )  # fmt: skip


def _dense_fake(
    q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor, head_dim_v: int,
    softmax_scale: float | None, causal: bool, is_fp8: bool | None, kv_format: str | None,
    backend: str | None, batch_invariant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    validation.decode(
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, is_fp8,
        batch_invariant=batch_invariant, layout=kv_format,
    )  # fmt: skip
    return _decode_like(q, head_dim_v)


def _sparse(
    q: Tensor, k_cache: Tensor, indices: Tensor, head_dim_v: int, softmax_scale: float | None,
    is_fp8: bool | None, attn_sink: Tensor | None, extra_k_cache: Tensor | None,
    extra_indices: Tensor | None, topk_length: Tensor | None, extra_topk_length: Tensor | None,
    kv_format: str | None, backend: str | None, batch_invariant: bool, out: Tensor | None = None,
    lse_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from flashmla_hub.decode import decode

    return decode(
        q, k_cache, None, None, head_dim_v, softmax_scale, False, is_fp8, indices, attn_sink,
        extra_k_cache, extra_indices, topk_length, extra_topk_length, out, lse_out, backend,
        batch_invariant, kv_format,
    )  # fmt: skip


def _sparse_fake(
    q: Tensor, k_cache: Tensor, indices: Tensor, head_dim_v: int, softmax_scale: float | None,
    is_fp8: bool | None, attn_sink: Tensor | None, extra_k_cache: Tensor | None,
    extra_indices: Tensor | None, topk_length: Tensor | None, extra_topk_length: Tensor | None,
    kv_format: str | None, backend: str | None, batch_invariant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    validation.decode(
        q, k_cache, None, None, head_dim_v, softmax_scale, False, is_fp8, indices, attn_sink,
        extra_k_cache, extra_indices, topk_length, extra_topk_length,
        batch_invariant=batch_invariant, layout=kv_format,
    )  # fmt: skip
    return _decode_like(q, head_dim_v)


def _prefill(
    q: Tensor, kv: Tensor, indices: Tensor, sm_scale: float, d_v: int, attn_sink: Tensor | None,
    topk_length: Tensor | None, backend: str | None, batch_invariant: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from flashmla_hub.prefill import prefill

    return prefill(
        q, kv, indices, sm_scale, d_v, attn_sink, topk_length, None, backend, batch_invariant
    )


def _prefill_fake(
    q: Tensor, kv: Tensor, indices: Tensor, sm_scale: float, d_v: int, attn_sink: Tensor | None,
    topk_length: Tensor | None, backend: str | None, batch_invariant: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    validation.prefill(
        q, kv, indices, sm_scale, d_v, attn_sink, topk_length, batch_invariant=batch_invariant
    )
    s_q, h_q, _ = q.shape
    rows = [q.new_empty((s_q, h_q), dtype=torch.float32) for _ in range(2)]
    return q.new_empty((s_q, h_q, d_v)), rows[0], rows[1]


def _into(real: Any) -> Any:
    def run(*args: Any) -> None:
        real(*args)

    return run


def _nothing(*args: Any) -> None:
    """The fake of an op that writes into its arguments."""


def _decode_like(q: Tensor, d_v: int) -> tuple[Tensor, Tensor]:
    batch, s_q, h_q, _ = q.shape
    out = q.new_empty((batch, s_q, h_q, d_v))
    return out, q.new_empty((batch, h_q, s_q), dtype=torch.float32)


_define("dense_decode", _DENSE, "(Tensor, Tensor)", _dense, _dense_fake)
_define("dense_decode_out", _DENSE + _INTO, "()", _into(_dense), _nothing)
_define("sparse_decode", _SPARSE, "(Tensor, Tensor)", _sparse, _sparse_fake)
_define("sparse_decode_out", _SPARSE + _INTO, "()", _into(_sparse), _nothing)
_define("sparse_prefill", _PREFILL, "(Tensor, Tensor, Tensor)", _prefill, _prefill_fake)


def decode(
    q: Any, k_cache: Any, block_table: Any, cache_seqlens: Any, head_dim_v: Any,
    softmax_scale: Any, causal: Any, is_fp8: Any, indices: Any, attn_sink: Any,
    extra_k_cache: Any, extra_indices: Any, topk_length: Any, extra_topk_length: Any, out: Any,
    lse_out: Any, backend: Any, batch_invariant: Any, kv_format: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A decode call while torch.compile traces."""
    ops = torch.ops.flashmla_hub
    args: tuple[Any, ...]
    if indices is None:
        args = (
            q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, is_fp8,
            kv_format, backend, batch_invariant,
        )  # fmt: skip
        returning, writing = ops.dense_decode, ops.dense_decode_out
    else:
        args = (
            q, k_cache, indices, head_dim_v, softmax_scale, is_fp8, attn_sink, extra_k_cache,
            extra_indices, topk_length, extra_topk_length, kv_format, backend, batch_invariant,
        )  # fmt: skip
        returning, writing = ops.sparse_decode, ops.sparse_decode_out
    if out is None and lse_out is None:
        return returning(*args)  # type: ignore[no-any-return]
    new_out, new_lse = _decode_like(q, head_dim_v)
    out = new_out if out is None else out
    lse_out = new_lse if lse_out is None else lse_out
    writing(*args, out, lse_out)
    return out, lse_out


def prefill(
    q: Any, kv: Any, indices: Any, sm_scale: Any, d_v: Any, attn_sink: Any, topk_length: Any,
    out: Any, backend: Any, batch_invariant: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A sparse prefill call while torch.compile traces."""
    got = torch.ops.flashmla_hub.sparse_prefill(
        q, kv, indices, sm_scale, d_v, attn_sink, topk_length, backend, batch_invariant
    )
    if out is None:
        return got  # type: ignore[no-any-return]
    out.copy_(got[0])
    return out, got[1], got[2]

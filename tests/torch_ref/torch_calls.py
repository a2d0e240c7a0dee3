"""Running a case on the torch backend, and what the oracle expects of it."""

from __future__ import annotations

from typing import Any

import oracle
from torch import Tensor
from torch_cases import Case

from flashmla_hub import flash_mla_sparse_fwd, flash_mla_with_kvcache
from flashmla_hub.backends.torch_ref.plugin import TorchBackend
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

CPU = DeviceInfo("cpu", "x86_64", "cpu")


def key_of(case: Case, op: str, **changes: Any) -> KernelKey:
    sparse, decode = op != DENSE_DECODE, op == SPARSE_DECODE
    return KernelKey(
        op=op,
        s_q=1 if op == SPARSE_PREFILL else case.s_q,
        h_q=case.h_q,
        h_kv=case.h_kv,
        d_qk=case.d_qk,
        d_v=case.d_v,
        page_block_size=1 if op == SPARSE_PREFILL else case.page,
        dtype=str(case.dtype).removeprefix("torch."),
        kv_format=case.kv_format,
        causal=case.causal and case.s_q > 1,
        topk=case.topk if sparse else 0,
        topk_length=sparse and case.topk_length,
        attn_sink=sparse and case.sink,
        extra_topk=case.extra_topk if decode else 0,
        extra_page_block_size=case.extra_page if decode else 0,
        extra_topk_length=decode and case.topk_length and case.extra_topk > 0,
        kv_strides=case.strides,
    ).with_(**changes)


def run_dense(
    case: Case, inputs: dict[str, Any], out: Tensor | None = None, lse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Through the public function."""
    names = ("q", "k_cache", "block_table", "cache_seqlens")
    return flash_mla_with_kvcache(
        *(inputs[name] for name in names),
        case.d_v,
        softmax_scale=case.scale,
        causal=case.causal,
        kv_format=_format(case),
        out=out,
        lse_out=lse,
        backend="torch",
    )


def bound_dense(case: Case, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The bound kernel itself, past the hub's checks: for devices the hub does not know."""
    kernel = TorchBackend().bind(key_of(case, DENSE_DECODE), CPU)
    tensors = [inputs[name] for name in ("q", "k_cache", "block_table", "cache_seqlens")]
    return kernel.run(DenseDecode(*tensors, case.scale))


def expect_dense(case: Case, inputs: dict[str, Any]) -> oracle.Expected:
    facts = {"d_v": case.d_v, "softmax_scale": case.scale, "causal": case.causal}
    return oracle.dense_decode(**inputs, **facts, kv_format=case.kv_format)


def run_sparse(case: Case, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return flash_mla_with_kvcache(
        inputs["q"],
        inputs["k_cache"],
        None,
        None,
        case.d_v,
        softmax_scale=case.scale,
        indices=inputs["indices"],
        attn_sink=inputs["attn_sink"],
        topk_length=inputs["topk_length"],
        extra_k_cache=inputs.get("extra_k_cache"),
        extra_indices_in_kvcache=inputs.get("extra_indices"),
        extra_topk_length=inputs.get("extra_topk_length"),
        kv_format=_format(case),
        backend="torch",
    )


def bound_sparse(case: Case, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    names = ("topk_length", "attn_sink", "extra_k_cache", "extra_indices", "extra_topk_length")
    kernel = TorchBackend().bind(key_of(case, SPARSE_DECODE), CPU)
    tensors = [inputs[name] for name in ("q", "k_cache", "indices")]
    options = [inputs.get(name) for name in names]
    return kernel.run(SparseDecode(*tensors, case.scale, None, None, *options))


def expect_sparse(case: Case, inputs: dict[str, Any]) -> oracle.Expected:
    facts = {"d_v": case.d_v, "softmax_scale": case.scale, "kv_format": case.kv_format}
    return oracle.sparse_decode(**inputs, **facts)


def run_prefill(case: Case, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    options = {name: inputs[name] for name in ("attn_sink", "topk_length")}
    return flash_mla_sparse_fwd(
        inputs["q"],
        inputs["kv"],
        inputs["indices"],
        case.scale,
        case.d_v,
        **options,
        backend="torch",
    )


def bound_prefill(case: Case, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    kernel = TorchBackend().bind(key_of(case, SPARSE_PREFILL), CPU)
    tensors = [inputs[name] for name in ("q", "kv", "indices")]
    options = [inputs["topk_length"], inputs["attn_sink"]]
    return kernel.run(SparsePrefill(*tensors, case.scale, None, None, None, *options))


def expect_prefill(case: Case, inputs: dict[str, Any]) -> oracle.Expected:
    return oracle.sparse_prefill(**inputs, d_v=case.d_v, softmax_scale=case.scale)


def _format(case: Case) -> str | None:
    return None if case.kv_format == "dense" else case.kv_format

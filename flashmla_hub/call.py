"""A call is one value: as the caller gave it, and as a backend's kernel receives it.

``DecodeArguments`` and ``PrefillArguments`` hold the arguments of the public functions by their
public names. They are the one table of fields: validation checks such a value, the table of seen
facts compares ``facts_of`` it, and the ops of torch.compile get their schema from its
annotations. ``DenseDecode``, ``SparseDecode`` and ``SparsePrefill`` are what
:meth:`~flashmla_hub.backend.BoundKernel.run` receives. All are named tuples, the cheapest frozen
value there is: a decoding step builds one for each layer.
"""

from __future__ import annotations

import typing
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL


class DecodeArguments(NamedTuple):
    """The arguments of ``flash_mla_with_kvcache``, but for the metadata; not checked yet."""

    q: Tensor
    k_cache: Tensor
    block_table: Tensor | None
    cache_seqlens: Tensor | None
    head_dim_v: int
    softmax_scale: float | None = None
    causal: bool = False
    is_fp8_kvcache: bool | None = None
    indices: Tensor | None = None
    attn_sink: Tensor | None = None
    extra_k_cache: Tensor | None = None
    extra_indices_in_kvcache: Tensor | None = None
    topk_length: Tensor | None = None
    extra_topk_length: Tensor | None = None
    out: Tensor | None = None
    lse_out: Tensor | None = None
    backend: str | None = None
    batch_invariant: bool = False
    check_values: bool = False
    kv_format: str | None = None
    enable_batch_invariant: bool | None = None
    use_legacy: bool | None = None
    descale_q: Tensor | None = None
    descale_k: Tensor | None = None
    indexer_topk: int = 0


class PrefillArguments(NamedTuple):
    """The arguments of ``flash_mla_sparse_fwd``; not checked yet."""

    q: Tensor
    kv: Tensor
    indices: Tensor
    sm_scale: float
    d_v: int = 512
    attn_sink: Tensor | None = None
    topk_length: Tensor | None = None
    out: Tensor | None = None
    backend: str | None = None
    batch_invariant: bool = False


Arguments = DecodeArguments | PrefillArguments
OUTPUTS = ("out", "lse_out")
ALIGNED = ("q", "k_cache", "kv", "extra_k_cache", "out")
"""Tensors whose address counts beside their shapes and strides."""


def _fields(kind: type[Any]) -> dict[str, tuple[type[Any], bool]]:
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        kinds = [t for t in typing.get_args(hint) or (hint,) if t is not type(None)]
        found[name] = (kinds[0], type(None) in typing.get_args(hint))
    return found


FIELDS = {kind: _fields(kind) for kind in (DecodeArguments, PrefillArguments)}
"""{arguments: {field: (its type, whether it may be None)}}, in order."""


class DenseDecode(NamedTuple):
    """A checked dense decode call; shapes and dtypes: docs/contract.md, C1.

    ``softmax_scale`` is a float. ``out`` (batch, s_q, h_q, d_v) and ``lse`` (batch, h_q, s_q) are
    tensors to write in place and return, or None: then the kernel allocates and returns its own.
    ``plan`` is what ``BoundKernel.plan`` returned, None for kernels that do not plan.
    """

    q: Tensor
    k_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    softmax_scale: float
    out: Tensor | None = None
    lse: Tensor | None = None
    plan: Any = None
    descale_q: Tensor | None = None
    descale_k: Tensor | None = None


class SparseDecode(NamedTuple):
    """A checked sparse decode call (C4). Outputs and plan as in :class:`DenseDecode`."""

    q: Tensor
    k_cache: Tensor
    indices: Tensor
    softmax_scale: float
    out: Tensor | None = None
    lse: Tensor | None = None
    topk_length: Tensor | None = None
    attn_sink: Tensor | None = None
    extra_k_cache: Tensor | None = None
    extra_indices: Tensor | None = None
    extra_topk_length: Tensor | None = None
    plan: Any = None
    descale_q: Tensor | None = None
    descale_k: Tensor | None = None


class SparsePrefill(NamedTuple):
    """A checked sparse prefill call (C4.3); ``lse`` and ``max_logits`` are (s_q, h_q)."""

    q: Tensor
    kv: Tensor
    indices: Tensor
    softmax_scale: float
    out: Tensor | None = None
    lse: Tensor | None = None
    max_logits: Tensor | None = None
    topk_length: Tensor | None = None
    attn_sink: Tensor | None = None
    plan: Any = None


Call = DenseDecode | SparseDecode | SparsePrefill

CALLS: dict[str, type[Call]] = {
    DENSE_DECODE: DenseDecode,
    SPARSE_DECODE: SparseDecode,
    SPARSE_PREFILL: SparsePrefill,
}
POSITIONAL = {DENSE_DECODE: 8, SPARSE_DECODE: 12, SPARSE_PREFILL: 10}
"""How many leading fields of a call plugin protocol 1 passes to ``run``, by position."""

_SCALARS = frozenset((bool, int, float, str))


def facts_of(args: Arguments) -> tuple[Any, ...] | None:
    """All that validation looks at, hashable: of tensors everything but their contents, of the
    rest type and value (True, 1 and 1.0 are three things).

    None where a tensor is not a plain one in memory, or a scalar of no type that any argument
    takes: such a call is checked each time.
    """
    facts: list[Any] = [tuple(map(type, args)), torch.is_grad_enabled()]
    add = facts.extend
    x: Any
    try:
        for x in args:
            if x is None:  # its type says so
                continue
            kind = type(x)
            if kind is Tensor or kind is Parameter:
                add((
                    x.shape, x.stride(), x.dtype, x.device, x.data_ptr() & 15, x.is_neg(),
                    x.requires_grad,
                ))  # fmt: skip
            elif kind in _SCALARS:
                facts.append(x)
            else:
                return None
    except RuntimeError:  # no strides or no memory: another layout, a transform's tensor
        return None
    return tuple(facts)


def tensors_of(args: Arguments) -> dict[str, Tensor]:
    """The tensors that were given, by argument."""
    return {n: x for n, x in zip(args._fields, args, strict=True) if isinstance(x, Tensor)}

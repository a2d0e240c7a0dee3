"""What a SchedMeta keeps of the call it was bound by, for the later layers of its step.

Those differ in q and k_cache alone. Shapes, strides, dtypes, devices, gradients, lazy negation,
transforms and modes of all four tensors are compared by the guard that torch.compile uses, in C++;
the rest by identity or equality. Whatever differs takes the general path.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from flashmla_hub import config, registry
from flashmla_hub.call import DecodeArguments
from flashmla_hub.calls import Prepared

try:
    _guards: Any = importlib.import_module("torch._C._dynamo.guards").TensorGuards
except (ImportError, AttributeError):  # no public name of torch: without it, no fast path
    _guards = None


class Fast:
    """Immutable."""

    __slots__ = (
        "batch_invariant", "block_table", "cache_seqlens", "causal", "facts", "is_fp8_kvcache",
        "kernel", "low_bits", "plans", "repeat", "run", "same_tensors", "scale",
    )  # fmt: skip

    def __init__(self, prepared: Prepared, args: DecodeArguments, same_tensors: Any) -> None:
        q, k_cache, table, lens = tensors = args[:4]
        self.block_table, self.cache_seqlens = table, lens
        self.causal, self.is_fp8_kvcache = args.causal, args.is_fp8_kvcache
        self.batch_invariant = args.batch_invariant
        d_v, scale, topk = args.head_dim_v, args.softmax_scale, args.indexer_topk
        self.facts = (
            type(d_v), d_v, type(scale), scale, args.kv_format, args.backend,
            type(topk), topk, config.changed(), registry.loaded(),
        )  # fmt: skip
        self.same_tensors = same_tensors
        self.low_bits = (q.data_ptr() | k_cache.data_ptr()) & 15
        self.kernel = kernel = prepared.kernel
        self.plans, self.run = kernel.plans, kernel.run
        self.scale = prepared.checked.scale
        self.repeat = None if kernel.plans else kernel.repeat(*tensors, self.scale)  # type: ignore[arg-type]


# Values of these arguments that the fast path takes: absent, or their default.
_ABSENT = (
    "indices", "attn_sink", "extra_k_cache", "extra_indices_in_kvcache", "topk_length",
    "extra_topk_length", "out", "lse_out", "enable_batch_invariant", "use_legacy", "descale_q",
    "descale_k",
)  # fmt: skip


def snapshot(prepared: Prepared, args: DecodeArguments) -> Fast | None:
    """The snapshot of a dense call without optional arguments, on plain tensors; None of others."""
    plain = (
        _guards is not None
        and not prepared.negated
        and not args.check_values
        and all(getattr(args, name) is None for name in _ABSENT)
        and all(type(x) is torch.Tensor and not x.requires_grad for x in args[:4])
    )
    if not plain:
        return None
    guards = _guards(*args[:4], dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return Fast(prepared, args, guards.check)

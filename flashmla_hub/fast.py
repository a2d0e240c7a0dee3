"""What a SchedMeta keeps of the call it was bound by, for the later layers of its step.

Those differ in q and k_cache alone. The facts of all four tensors are compared by a guard, the rest
by identity or equality. Whatever differs takes the general path.
"""

from __future__ import annotations

from typing import Any

from flashmla_hub import config, registry
from flashmla_hub.call import DecodeArguments
from flashmla_hub.calls import Prepared
from flashmla_hub.recent import guard


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
    if prepared.negated or args.check_values or any(getattr(args, n) is not None for n in _ABSENT):
        return None
    same = guard(args[:4])
    return None if same is None else Fast(prepared, args, same)

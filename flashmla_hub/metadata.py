"""``SchedMeta``: what ``get_mla_metadata`` returns, and the fast path it carries.

One value serves all layers of a decoding step. On first use it is bound to the request's shape
and to the route that serves it; later calls compare a handful of facts and go straight to the
kernel. Whatever differs takes the slow path, never an unchecked launch (contract C2.2).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError

_POSITIONAL = (
    ("cache_seqlens",),
    ("num_q_tokens_per_head_k", "num_heads_per_head_k"),
    ("num_heads_k",),
    ("num_heads_q",),
    ("is_fp8_kvcache",),
    ("topk",),
)
# published by ports beside the six above; none has a meaning for a plan made on the device
_KEYWORDS = {name for names in _POSITIONAL for name in names} | {
    "extra_topk",
    "q",
    "bs",
    "topk_length",
    "extra_topk_length",
}


class SchedMeta:
    """Opaque. ``bound`` holds (batch, KernelKey) of the first use, ``fast`` its snapshot, ``plan``
    the state of ports whose plan depends on lengths. Each is replaced as a whole, so that two
    threads at worst do the same work twice.

    ``tile_scheduler_metadata`` and ``num_splits`` exist for code that looks at FlashMLA's own
    object; they are None until a call, and stay None.
    """

    __slots__ = ("bound", "fast", "plan")

    tile_scheduler_metadata: None = None
    num_splits: None = None

    def __init__(self) -> None:
        self.bound: Any = None
        self.fast: Any = None
        self.plan: Any = None

    def check(self, batch: int, key: Any) -> None:
        """Bind to the first use, refuse another shape later (contract C2.2)."""
        if self.bound is None:
            self.bound = (batch, key)
            return
        bound_batch, bound_key = self.bound
        if bound_batch != batch:
            raise _differs("batch", bound_batch, batch)
        if bound_key is key:
            return
        for name in _SHAPE_FIELDS:
            before, now = getattr(bound_key, name), getattr(key, name)
            if before != now:
                raise _differs(name, before, now)

    def __repr__(self) -> str:
        return f"SchedMeta(bound={self.bound!r})"


# Strides and alignment may differ between the layers of a step; these may not.
_SHAPE_FIELDS = (
    "op", "s_q", "h_q", "h_kv", "d_qk", "d_v", "page_block_size", "dtype", "kv_format", "causal",
    "topk", "topk_length", "attn_sink", "extra_topk", "extra_page_block_size", "extra_topk_length",
    "batch_invariant",
)  # fmt: skip


def _differs(name: str, before: object, now: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"tile_scheduler_metadata ({name})",
        now,
        f"{before}, the value of its first use; call get_mla_metadata() for each shape",
    )


@overload
def get_mla_metadata(
    cache_seqlens: Tensor | None = ...,
    num_q_tokens_per_head_k: int | None = ...,
    num_heads_k: int | None = ...,
    num_heads_q: int | None = ...,
    is_fp8_kvcache: bool | None = ...,
    topk: int | None = ...,
    *,
    as_tensors: Literal[False] = ...,
    **published: Any,
) -> tuple[SchedMeta, None]: ...
@overload
def get_mla_metadata(
    cache_seqlens: Tensor | None,
    num_q_tokens_per_head_k: int | None = ...,
    num_heads_k: int | None = ...,
    num_heads_q: int | None = ...,
    is_fp8_kvcache: bool | None = ...,
    topk: int | None = ...,
    *,
    as_tensors: Literal[True],
    **published: Any,
) -> tuple[Tensor, Tensor]: ...
def get_mla_metadata(
    *args: Any, as_tensors: bool = False, **kwargs: Any
) -> tuple[SchedMeta, None] | tuple[Tensor, Tensor]:
    """Metadata for the calls of one decoding step (contract C2).

    Takes every published form: no argument; ``(cache_seqlens, num_heads_per_head_k,
    num_heads_k)``; ``(cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q,
    is_fp8_kvcache, topk)``; by position or by keyword. The values are not needed: the plan is made
    on the device at each call, so lengths may change in place between calls.

    Args:
        as_tensors: return the form that some engines copy into fixed buffers: int32 tensors
            (1, 8) and (batch + 1,), on the device of ``cache_seqlens``.

    Returns:
        ``(meta, None)``, to be passed on as ``tile_scheduler_metadata`` and ``num_splits``.

    Raises:
        InvalidRequestError: an argument that no published generation has.

    Example:
        >>> import flashmla_hub, torch
        >>> meta, splits = flashmla_hub.get_mla_metadata()
        >>> lens = torch.tensor([3, 5], dtype=torch.int32)
        >>> meta, splits = flashmla_hub.get_mla_metadata(lens, 16, 1)
        >>> splits is None
        True
    """
    if len(args) > len(_POSITIONAL):
        raise InvalidRequestError(
            "get_mla_metadata", f"{len(args)} positional arguments", f"at most {len(_POSITIONAL)}"
        )
    for name in kwargs:
        if name not in _KEYWORDS:
            raise InvalidRequestError(
                f"get_mla_metadata({name}=)", "given", f"one of {', '.join(sorted(_KEYWORDS))}"
            )
    for names in _POSITIONAL[: len(args)]:
        for name in names:
            if name in kwargs:
                raise InvalidRequestError(f"get_mla_metadata({name}=)", "given twice", "once")
    lens = args[0] if args else kwargs.get("cache_seqlens")
    if lens is not None and not (isinstance(lens, Tensor) and lens.dim() == 1):
        raise InvalidRequestError("cache_seqlens", type(lens).__name__, "a tensor (batch,)")
    if not as_tensors:
        return SchedMeta(), None
    if lens is None:
        raise InvalidRequestError("cache_seqlens", "None", "a tensor (batch,) with as_tensors=True")
    rows = torch.zeros((1, 8), dtype=torch.int32, device=lens.device)
    splits = torch.arange(lens.shape[0] + 1, dtype=torch.int32, device=lens.device)
    return rows, splits

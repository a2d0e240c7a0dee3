"""The entry point (group ``sglang.srt.plugins``): hooks SGLang's FlashMLA calls.

A new attention-backend name would fall through SGLang's lists of names (page size 64, draft
backends, and "natural-log LSE" for DCP, where an unknown name is merged as base 2 without a word),
so the hub stands behind the name ``flashmla`` instead. Because that replaces what the name means,
it is opt-in: ``FLASHMLA_HUB_ENGINES=sglang``.

The hooks are AROUND hooks, not REPLACE hooks: SGLang hands an AROUND hook the original, while a
replacement has to dig for it and finds itself once another plugin hooks the same function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import flashmla_hub as hub
from flashmla_hub import config

OPT_IN = "sglang"  # a name of FLASHMLA_HUB_ENGINES
MODULE = "sglang.kernels.ops.attention.flash_mla_interface"


def get_mla_metadata(
    original: Callable[..., Any],
    cache_seqlens: Tensor | None = None,
    num_q_tokens_per_head_k: int | None = None,
    num_heads_k: int | None = None,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,
    topk: int | None = None,
) -> tuple[Any, Any]:
    """Metadata of a dense call as two int32 tensors, which SGLang copies into fixed buffers."""
    args = (cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q, is_fp8_kvcache, topk)
    if cache_seqlens is None or is_fp8_kvcache or topk is not None:
        return original(*args)
    return hub.get_mla_metadata(*args, as_tensors=True)


def flash_mla_with_kvcache(
    original: Callable[..., Any],
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: Any,
    num_splits: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Dense bf16/fp16 calls go to the hub; everything else to the original, unchanged.

    The rule looks at arguments only, before any launch, so that one layer never mixes the two.
    """
    beyond_dense = bool(args) or any(
        value is not None and value is not False
        for name, value in kwargs.items()
        if name != "use_legacy"  # picks between the original's own kernel sets
    )
    quantised = 1 in (q.element_size(), k_cache.element_size())
    if beyond_dense or quantised or not isinstance(tile_scheduler_metadata, Tensor):
        return original(
            q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
            num_splits, softmax_scale, causal, *args, **kwargs,
        )  # fmt: skip
    return hub.flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
        num_splits, softmax_scale=softmax_scale, causal=causal,
    )  # fmt: skip


HOOKS = (get_mla_metadata, flash_mla_with_kvcache)


def register() -> None:
    """Register the hooks once; silent where SGLang is absent or the opt-in is not given."""
    if OPT_IN not in config.current().engines:
        return
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError:
        return
    for hook in HOOKS:
        target = f"{MODULE}.{hook.__name__}"
        known = getattr(HookRegistry, "_hooks", {}).get(target, [])
        if all(entry[1] is not hook for entry in known):  # a second call would wrap twice
            HookRegistry.register(target, hook, HookType.AROUND)


@dataclass(frozen=True)
class HookStatus:
    """Whether SGLang's FlashMLA calls reach the hub; ``reasons`` says why not."""

    in_force: bool
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.in_force


def check() -> HookStatus:
    """Look at the hooked functions themselves: SGLang only logs a hook that failed to apply.

    Call it after ``sglang.srt.plugins.load_plugins()``.
    """
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        return HookStatus(False, (f"{MODULE} cannot be imported: {error}",))
    missing = [hook.__name__ for hook in HOOKS if not _wraps(getattr(module, hook.__name__), hook)]
    if not missing:
        return HookStatus(True)
    reasons = [f"{name}: SGLang's own function is in place" for name in missing]
    if OPT_IN not in config.current().engines:
        reasons.append(f"not opted in: set FLASHMLA_HUB_ENGINES={OPT_IN}")
    return HookStatus(False, tuple(reasons))


def _wraps(function: Any, hook: object) -> bool:
    """Whether ``hook`` is one of the wrappers that SGLang put around ``function``."""
    while function is not None:
        cells = getattr(function, "__closure__", None) or ()
        if any(cell.cell_contents is hook for cell in cells):
            return True
        function = getattr(function, "__wrapped__", None)
    return False

"""The layouts that a call names (contract C3.0): checked against its caches, never guessed."""

from __future__ import annotations

from typing import Any

from flashmla_hub import checks, kv_format
from flashmla_hub.call import DecodeArguments
from flashmla_hub.errors import InvalidRequestError


def layouts_of(name: str) -> tuple[str, str]:
    """The layouts of the first and the second cache."""
    return (name, name) if name == "dense" else kv_format.caches(name)


def layout_of_call(args: DecodeArguments, d_qk: Any, d_v: int) -> tuple[str, tuple[str, ...]]:
    """(id of the layout, remarks)"""
    k_cache = args.k_cache
    is_fp8 = checks.optional_flag("is_fp8_kvcache", args.is_fp8_kvcache)
    checks.tensor("k_cache", k_cache, ("num_blocks", "page_block_size", "h_kv", "d"))
    layout = checks.text("kv_format", args.kv_format, "the id of a layout")
    one_byte = k_cache.element_size() == 1
    if is_fp8 is None:
        is_fp8 = one_byte
    if is_fp8 != one_byte:
        want = "a 1-byte dtype" if is_fp8 else "the dtype of q"
        raise InvalidRequestError(
            "k_cache.dtype", k_cache.dtype, f"{want} with is_fp8_kvcache={is_fp8}"
        )
    if not is_fp8:
        if layout not in (None, "dense"):
            raise InvalidRequestError(
                "kv_format", checks.describe(layout), "None or 'dense' for this k_cache.dtype"
            )
        return "dense", ()
    name = kv_format.default_for(d_qk) if layout is None else layout.lower()
    found = kv_format.get(kv_format.caches(name)[0], d_qk)
    width = k_cache.shape[-1]
    if layout is None and isinstance(width, int) and width != found.bytes_per_token:
        others = " or ".join(f"kv_format={n!r}" for n in kv_format.named_by_width(width))
        expected = f"{found.bytes_per_token} bytes a token, of {found.name}, the default for d_qk"
        fix = f" {d_qk}; name another layout" + (f": {others}" if others else " with kv_format=")
        raise InvalidRequestError("k_cache.shape[-1]", width, expected + fix)
    if (d_qk, d_v) != (found.d_qk, found.d_v):
        raise InvalidRequestError(
            f"q.shape[-1]/head_dim_v with kv_format={found.name}",
            f"{d_qk}/{d_v}",
            f"{found.d_qk}/{found.d_v}",
        )
    note = f"kv_format {found.name} by default for d_qk {d_qk}; name it to be sure"
    return name, (note,) if layout is None else ()

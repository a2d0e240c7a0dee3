"""Named layouts of the latent KV cache, and the converters to and from them (contract C3).

A layout is named by an id and never guessed from its byte count: other projects have changed
layouts at unchanged sizes, and a cache read in the wrong one is silently misread. docs/layouts.md
has a picture of each.

===============  ==========  ================================================================
id               d_qk, d_v   bytes of a token
===============  ==========  ================================================================
``v32``          576, 512    656: 512 e4m3, then 4 float32 scales (one per 128 values), then
                             64 bf16 rope values
``model1``       512, 512    584, kept page by page: first the tokens' 448 e4m3 + 64 bf16 rope
                             values (576 bytes each), then 8 bytes a token: 7 ue8m0 scales
                             (one per 64 values) and one of padding. Pages start at multiples
                             of 576 bytes.
``v32_no_rope``  512, 512    528: 512 e4m3, then 4 float32 scales
``v41``          512, 512    528: 512 e4m3, then 16 ue8m0 scales (one per 32 values)
``v41_fp4``      512, 512    288: 512 e2m1 (two to a byte, the even one low), then 32 e4m3
                             scales (one per 16 values); a second cache beside ``v41`` only
``fp8``          576 or 512  as many: e4m3, one float32 scale for the tensor beside it
===============  ==========  ================================================================

A cache is a tensor (num_blocks, page_block_size, 1, bytes_per_token) of float8_e4m3fn, uint8 or
int8. The stride between pages is free; the one between tokens too, where scales are not kept page
by page. The scale of a group of e4m3 values is ``2 ** ceil(log2(max(amax / 448, 1e-4)))``, that of
e2m1 values the e4m3 next to ``amax / 6``; a value is ``x / scale``, rounded to nearest even. Both
directions are exact on what the layout can represent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.layouts.layout import Layout

__all__ = [
    "DEFAULTS",
    "LAYOUTS",
    "Layout",
    "append",
    "default_for",
    "dequantize",
    "get",
    "named_by_width",
    "quantize",
]  # fmt: skip

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("v32", d_nope=512, d_rope=64, d_v=512, group=128),
        Layout(
            "model1",
            d_nope=448,
            d_rope=64,
            d_v=512,
            group=64,
            scale="ue8m0",
            scales_padding=1,
            paged_scales=True,
            page_multiple=576,
        ),
        Layout("v32_no_rope", d_nope=512, d_rope=0, d_v=512, group=128),
        Layout("v41", d_nope=512, d_rope=0, d_v=512, group=32, scale="ue8m0"),
        Layout(
            "v41_fp4",
            d_nope=512,
            d_rope=0,
            d_v=512,
            group=16,
            value="e2m1",
            scale="e4m3",
            beside="v41",
        ),
        Layout("fp8", d_nope=576, d_rope=0, d_v=512, scale="tensor", widths=(576, 512)),
    )
}

# Two caches of one call in layouts of their own, the first and the second, by the id of both.
PAIRS = {
    f"{layout.beside}+{layout.name}": (layout.beside, layout.name)
    for layout in LAYOUTS.values()
    if layout.beside
}

# What a call may name: kv_format=.
IDS = (*(name for name, layout in LAYOUTS.items() if not layout.beside), *PAIRS)

# What FlashMLA's published code assumes for FP8 caches without a name, by d_qk.
DEFAULTS = {576: "v32", 512: "model1"}


def get(name: str, d_qk: int | None = None) -> Layout:
    """The layout called ``name``, of the width ``d_qk`` where it has several.

    Raises InvalidRequestError for an unknown id.
    """
    if name not in LAYOUTS:
        raise InvalidRequestError("kv_format", repr(name), " | ".join(LAYOUTS))
    layout = LAYOUTS[name]
    return layout if d_qk is None else layout.of_width(d_qk)


def caches(name: str) -> tuple[str, str]:
    """The layouts of the first and the second cache of a call with ``kv_format=name``.

    Raises InvalidRequestError for an id that no call may name.
    """
    if name in PAIRS:
        return PAIRS[name]
    if name not in IDS:
        raise InvalidRequestError("kv_format", repr(name), " | ".join(IDS))
    return name, name


def default_for(d_qk: int) -> str:
    """The id FlashMLA's published code assumes for FP8 caches of this head dim."""
    if d_qk in DEFAULTS:
        return DEFAULTS[d_qk]
    known = " | ".join(f"{d_qk} ({name})" for d_qk, name in DEFAULTS.items())
    raise InvalidRequestError("d_qk of an FP8 cache", d_qk, known)


def named_by_width(width: int) -> tuple[str, ...]:
    """Ids of the layouts whose tokens have ``width`` bytes: to name in an error, never to guess."""
    return tuple(
        name
        for name, layout in LAYOUTS.items()
        if width in [layout.of_width(d).bytes_per_token for d in layout.widths or (layout.d_qk,)]
    )


def _descale(layout: Layout, value: Tensor | float | None, on: Tensor) -> Tensor | None:
    """``descale_k`` as a float32 tensor of one element on the device of ``on``."""
    if value is None:
        return None
    if layout.scale != "tensor":
        expected = f"None: the layout {layout.name!r} holds its scales itself"
        raise InvalidRequestError("descale_k", "given", expected)
    scale = torch.as_tensor(value, dtype=torch.float32, device=on.device)
    if scale.numel() != 1:
        raise InvalidRequestError("descale_k", tuple(scale.shape), "one number")
    return scale.reshape(1)


def quantize(k: Tensor, layout: str, descale_k: Tensor | float | None = None) -> Tensor:
    """Quantise a K cache.

    Args:
        k: (num_blocks, page_block_size, 1, d_qk), bfloat16, float16 or float32.
        layout: id of the layout to write.
        descale_k: for ``fp8``, what its values are multiplied by when read (None: 1). Values past
            448 * descale_k become the largest.

    Returns:
        (num_blocks, page_block_size, 1, bytes_per_token), float8_e4m3fn as FlashMLA has it. Its
        page stride is ``page_stride(page_block_size)`` bytes.
    """
    fmt = get(layout, k.shape[-1])
    if k.dim() != 4 or k.shape[2] != 1 or k.shape[3] != fmt.d_qk:
        expected = f"(num_blocks, page_block_size, 1, {fmt.d_qk}) for layout {layout!r}"
        raise InvalidRequestError("k", tuple(k.shape), expected)
    pages, tokens = k.shape[:2]
    pool = k.new_zeros((pages, fmt.page_stride(tokens)), dtype=torch.uint8)
    raw = pool[:, : tokens * fmt.bytes_per_token].unflatten(1, (tokens, 1, fmt.bytes_per_token))
    for view, part in zip(
        fmt.views(raw), fmt.encode(k.resolve_neg(), _descale(fmt, descale_k, k)), strict=True
    ):
        view.copy_(part)
    return raw.view(torch.float8_e4m3fn)


def dequantize(
    cache: Tensor,
    layout: str,
    dtype: torch.dtype = torch.bfloat16,
    descale_k: Tensor | float | None = None,
) -> Tensor:
    """The K cache (num_blocks, page_block_size, 1, d_qk) that ``cache`` stands for.

    Values are the quantised ones times their scale, rounded to bfloat16 once (exact for
    power-of-two scales), then converted to ``dtype``.
    """
    fmt = get(layout, cache.shape[-1])
    return fmt.decode(fmt.views(cache), _descale(fmt, descale_k, cache)).to(dtype)


@torch.no_grad()
def append(
    cache: Tensor,
    rows: Tensor,
    slots: Tensor,
    *,
    layout: str = "dense",
    descale_k: Tensor | float | None = None,
) -> None:
    """Write new tokens into ``cache`` in place, quantising where its layout asks for it.

    Does not synchronise with the host, and may be captured in a CUDA graph.

    Args:
        cache: (num_blocks, page_block_size, 1, d_qk) for ``layout="dense"``, else
            (num_blocks, page_block_size, 1, bytes_per_token) of a 1-byte dtype.
        rows: (n, d_qk) or (n, 1, d_qk), the new tokens' K.
        slots: (n,) int32 or int64, page * page_block_size + offset of each token. Tokens with a
            negative slot, or one past the cache, are skipped (the padding of a captured batch);
            the other slots differ.
        layout: id of the layout of ``cache``.
        descale_k: as for :func:`quantize`; a tensor on the device, so that nothing is copied there.

    Raises:
        InvalidRequestError: naming the argument, before anything is written.
    """
    fmt = None if layout == "dense" else get(layout, cache.shape[-1] if cache.dim() else None)
    if fmt is None and (cache.dim() != 4 or cache.shape[2] != 1 or cache.element_size() == 1):
        actual = f"{tuple(cache.shape)} {cache.dtype}"
        expected = "(num_blocks, page_block_size, 1, d_qk), or layout= for a 1-byte cache"
        raise InvalidRequestError("cache", actual, expected)
    d_qk = cache.shape[-1] if fmt is None else fmt.d_qk
    if rows.shape not in ((slots.numel(), d_qk), (slots.numel(), 1, d_qk)):
        expected = f"({slots.numel()}, {d_qk}): a row of d_qk values for each slot"
        raise InvalidRequestError("rows", tuple(rows.shape), expected)
    if slots.dim() != 1 or slots.dtype not in (torch.int32, torch.int64):
        expected = "one dimension, int32 or int64"
        raise InvalidRequestError("slots", f"{tuple(slots.shape)} {slots.dtype}", expected)
    for name, value in (("rows", rows), ("slots", slots)):
        if value.device != cache.device:
            raise InvalidRequestError(name, value.device, f"{cache.device}, the device of cache")
    if fmt is None and descale_k is not None:
        raise InvalidRequestError("descale_k", "given", "None for layout='dense'")
    if cache.numel() == 0 or slots.numel() == 0:
        return
    rows = rows.resolve_neg().reshape(slots.numel(), 1, d_qk)
    views = (cache,) if fmt is None else fmt.views(cache)
    parts = (
        (rows.to(cache.dtype),)
        if fmt is None
        else fmt.encode(rows, _descale(fmt, descale_k, cache))
    )

    # Shapes may not depend on values: a skipped token repeats what another one writes, and where
    # all are skipped, slot 0 is overwritten with itself.
    written = (slots >= 0) & (slots < cache.shape[0] * cache.shape[1])
    source = torch.where(
        written, torch.arange(slots.numel(), device=slots.device), written.int().argmax()
    )
    slot = torch.where(written.any(), slots.long()[source], 0)
    page, offset = slot // cache.shape[1], slot % cache.shape[1]
    for view, part in zip(views, parts, strict=True):
        kept = view[page, offset]
        view[page, offset] = torch.where(written.any(), part[source], kept)

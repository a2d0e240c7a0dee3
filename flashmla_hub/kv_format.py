"""Named FP8 layouts of the latent KV cache, and the converters to and from them (contract C3).

A layout is named by an id and never guessed from its byte count: other projects have changed
layouts at unchanged sizes, and a cache read in the wrong one is silently misread.

==========  =========  ======================================================================
id          d_qk, d_v  bytes of a token
==========  =========  ======================================================================
``v32``     576, 512   656: 512 e4m3, then 4 float32 scales (one per 128 values), then 64 bf16
                       rope values
``model1``  512, 512   584, kept page by page: first the tokens' 448 e4m3 + 64 bf16 rope values
                       (576 bytes each), then 8 bytes a token: 7 ue8m0 scales (one per 64
                       values) and one of padding. Pages start at multiples of 576 bytes.
==========  =========  ======================================================================

A cache is a tensor (num_blocks, page_block_size, 1, bytes_per_token) of a 1-byte dtype. The
stride between pages is free; the one between tokens too, where scales are not kept page by page.
The scale of a group is ``2 ** ceil(log2(max(amax / 448, 1e-4)))`` and a value is
``e4m3(x / scale)``, so that both directions are exact on what the layout can represent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError, NotSupportedError

E4M3_MAX = 448.0
MIN_SCALE = 1e-4

RESERVED = {
    "v32_no_rope": "656-byte tokens without a rope part (d_qk 512)",
    "v41": "528 bytes: 512 e4m3 with the rope part, 16 ue8m0 scales, interleaved per token",
    "v41_fp4": "288 bytes: 512 e2m1 values, 32 e4m3 scales, extra cache only",
}


@dataclass(frozen=True)
class Layout:
    """One FP8 layout: ``d_nope`` quantised values, then ``d_rope`` bfloat16 ones.

    ``group`` values share a scale of ``scale_bytes`` bytes (4: float32, 1: ue8m0, an exponent
    byte); ``scales_padding`` bytes follow them. With ``paged_scales`` the scales of a page's
    tokens come after all of its values, and a packed page is rounded up to a multiple of
    ``page_multiple`` bytes.
    """

    name: str
    d_nope: int
    d_rope: int
    d_v: int
    group: int
    scale_bytes: int
    scales_padding: int = 0
    paged_scales: bool = False
    page_multiple: int = 1

    @property
    def d_qk(self) -> int:
        return self.d_nope + self.d_rope

    @property
    def groups(self) -> int:
        return self.d_nope // self.group

    @property
    def value_bytes(self) -> int:
        """Bytes of a token's values: e4m3 and bf16, without scales."""
        return self.d_nope + 2 * self.d_rope

    @property
    def scales_bytes(self) -> int:
        """Bytes of a token's scales, padding included."""
        return self.groups * self.scale_bytes + self.scales_padding

    @property
    def bytes_per_token(self) -> int:
        return self.value_bytes + self.scales_bytes

    def page_stride(self, page_block_size: int) -> int:
        """Bytes from one page to the next in a packed cache."""
        size = page_block_size * self.bytes_per_token
        return size + -size % self.page_multiple

    def views(self, cache: Tensor) -> tuple[Tensor, ...]:
        """``cache`` as uint8 tensors (num_blocks, page_block_size, 1, width) that share its memory
        and whose [page, offset] are the parts of one token, in the order ``decode`` takes."""
        _check_cache(cache, self)
        raw = cache.view(torch.uint8)
        if not self.paged_scales:
            return (raw,)
        pages, tokens = raw.shape[:2]
        stride, base = raw.stride(0), raw.storage_offset()
        shapes = ((self.value_bytes, 0), (self.scales_bytes, tokens * self.value_bytes))
        return tuple(
            raw.as_strided((pages, tokens, 1, width), (stride, width, width, 1), base + start)
            for width, start in shapes
        )

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Quantise ``rows`` (..., d_qk): the token parts (..., width), uint8, as ``views``."""
        nope = rows[..., : self.d_nope].float().unflatten(-1, (self.groups, self.group))
        exponent = _scale_exponent(nope.abs().amax(-1))
        quantised = (nope / _power_of_two(exponent).unsqueeze(-1)).to(torch.float8_e4m3fn)
        values = quantised.flatten(-2).view(torch.uint8)
        rope = rows[..., self.d_nope :].to(torch.bfloat16).contiguous().view(torch.uint8)
        if self.paged_scales:
            padding = exponent.new_zeros((*exponent.shape[:-1], self.scales_padding))
            scales = torch.cat([exponent, padding], -1).to(torch.uint8)
            return torch.cat([values, rope], -1), scales
        scales = _power_of_two(exponent).contiguous().view(torch.uint8)
        return (torch.cat([values, scales, rope], -1),)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The bfloat16 rows (..., d_qk) of token parts, whose last dimension is contiguous."""
        if self.paged_scales:
            token, scales = parts
            rope = token[..., self.d_nope :]
            scale = _power_of_two(scales[..., : self.groups].to(torch.int32))
        else:
            (token,) = parts
            scales, rope = token[..., self.d_nope :].split([self.scales_bytes, 2 * self.d_rope], -1)
            scale = scales.contiguous().view(torch.float32)
        values = token[..., : self.d_nope].view(torch.float8_e4m3fn).float()
        nope = values.unflatten(-1, (self.groups, self.group)) * scale.unsqueeze(-1)
        rope = rope.contiguous().view(torch.bfloat16)
        return torch.cat([nope.flatten(-2).to(torch.bfloat16), rope], -1)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("v32", d_nope=512, d_rope=64, d_v=512, group=128, scale_bytes=4),
        Layout(
            "model1",
            d_nope=448,
            d_rope=64,
            d_v=512,
            group=64,
            scale_bytes=1,
            scales_padding=1,
            paged_scales=True,
            page_multiple=576,
        ),
    )
}


def get(name: str) -> Layout:
    """The layout called ``name``.

    Raises NotSupportedError for a reserved id, InvalidRequestError for an unknown one.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    if name in RESERVED:
        what = f"{name} ({RESERVED[name]})"
        raise NotSupportedError("flashmla_hub", "kv_format", what, " | ".join(LAYOUTS))
    raise InvalidRequestError("kv_format", repr(name), " | ".join(LAYOUTS))


def default_for(d_qk: int) -> str:
    """The id FlashMLA's published code assumes for FP8 caches of this head dim."""
    for layout in LAYOUTS.values():
        if layout.d_qk == d_qk:
            return layout.name
    known = " | ".join(f"{layout.d_qk} ({name})" for name, layout in LAYOUTS.items())
    raise InvalidRequestError("d_qk of an FP8 cache", d_qk, known)


def quantize(k: Tensor, layout: str) -> Tensor:
    """Quantise a K cache.

    Args:
        k: (num_blocks, page_block_size, 1, d_qk), bfloat16, float16 or float32.
        layout: id of the layout to write.

    Returns:
        (num_blocks, page_block_size, 1, bytes_per_token), float8_e4m3fn as FlashMLA has it. Its
        page stride is ``page_stride(page_block_size)`` bytes.
    """
    fmt = get(layout)
    if k.dim() != 4 or k.shape[2] != 1 or k.shape[3] != fmt.d_qk:
        expected = f"(num_blocks, page_block_size, 1, {fmt.d_qk}) for layout {layout!r}"
        raise InvalidRequestError("k", tuple(k.shape), expected)
    pages, tokens = k.shape[:2]
    pool = k.new_zeros((pages, fmt.page_stride(tokens)), dtype=torch.uint8)
    raw = pool[:, : tokens * fmt.bytes_per_token].unflatten(1, (tokens, 1, fmt.bytes_per_token))
    for view, part in zip(fmt.views(raw), fmt.encode(k.resolve_neg()), strict=True):
        view.copy_(part)
    return raw.view(torch.float8_e4m3fn)


def dequantize(cache: Tensor, layout: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The K cache (num_blocks, page_block_size, 1, d_qk) that ``cache`` stands for.

    Values are e4m3 * scale, rounded to bfloat16 once (exact for power-of-two scales), then
    converted to ``dtype``.
    """
    fmt = get(layout)
    return fmt.decode(fmt.views(cache)).to(dtype)


@torch.no_grad()
def append(cache: Tensor, rows: Tensor, slots: Tensor, *, layout: str = "dense") -> None:
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

    Raises:
        InvalidRequestError: naming the argument, before anything is written.
    """
    fmt = None if layout == "dense" else get(layout)
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
    if cache.numel() == 0 or slots.numel() == 0:
        return
    rows = rows.resolve_neg().reshape(slots.numel(), 1, d_qk)
    views = (cache,) if fmt is None else fmt.views(cache)
    parts = (rows.to(cache.dtype),) if fmt is None else fmt.encode(rows)

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


def _check_cache(cache: Tensor, layout: Layout) -> None:
    token = layout.bytes_per_token
    if cache.dim() != 4 or cache.shape[2:] != (1, token) or cache.element_size() != 1:
        actual = f"{tuple(cache.shape)} {cache.dtype}"
        expected = (
            f"(num_blocks, page_block_size, 1, {token}) of a 1-byte dtype for {layout.name!r}"
        )
        raise InvalidRequestError("FP8 cache", actual, expected)
    tight = cache.stride(3) == 1 and (
        not layout.paged_scales or cache.shape[1] <= 1 or cache.stride(1) == token
    )
    if not tight:
        expected = f"the bytes of a {'page' if layout.paged_scales else 'token'} side by side"
        raise InvalidRequestError("FP8 cache strides", cache.stride(), expected)


def _scale_exponent(amax: Tensor) -> Tensor:
    """The biased exponent (int32, 1..254) of the scale of groups whose largest |x| is ``amax``.

    Read off the bits of the float32, since log2 may round to the wrong side of a power of two.
    """
    bits = (amax / E4M3_MAX).clamp(min=MIN_SCALE).view(torch.int32)
    return ((bits >> 23) + ((bits & 0x7FFFFF) != 0)).clamp(1, 254)


def _power_of_two(exponent: Tensor) -> Tensor:
    """float32 ``2 ** (exponent - 127)`` of a ue8m0 exponent as int32 (0 is 2**-127, 255 is NaN)."""
    bits = torch.where(exponent == 0, 0x400000, exponent << 23)
    return torch.where(exponent == 255, 0x7FC00000, bits).to(torch.int32).view(torch.float32)

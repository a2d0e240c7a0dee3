"""One layout: its sizes, its parts as views of a cache, and both conversions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashmla_hub.checks import ONE_BYTE
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.layouts import numbers

SCALE_BYTES = {"float32": 4, "ue8m0": 1, "e4m3": 1, "tensor": 0}


@dataclass(frozen=True)
class Layout:
    """``d_nope`` quantised values, then ``d_rope`` bfloat16 ones.

    Attributes:
        value: ``e4m3``, or ``e2m1``, two to a byte.
        scale: what a group of ``group`` values has for a scale: ``float32`` or ``ue8m0`` (powers of
            two when written here), ``e4m3``; or ``tensor``, one for the whole cache that is passed
            beside it (``descale_k``).
        scales_padding: bytes that follow a token's scales.
        paged_scales: the scales of a page's tokens come after all of its values, and a packed page
            is rounded up to a multiple of ``page_multiple`` bytes. Otherwise a token's scales come
            between its quantised values and its rope part.
        widths: the d_qk it may have, where there is a choice.
        beside: the layout of the first cache, for one that is a second cache only.
    """

    name: str
    d_nope: int
    d_rope: int
    d_v: int
    group: int = 0
    value: str = "e4m3"
    scale: str = "float32"
    scales_padding: int = 0
    paged_scales: bool = False
    page_multiple: int = 1
    widths: tuple[int, ...] = ()
    beside: str = ""

    @property
    def d_qk(self) -> int:
        return self.d_nope + self.d_rope

    @property
    def head_dims(self) -> tuple[tuple[int, int], ...]:
        """All (d_qk, d_v) it may have."""
        return tuple((d_qk, self.d_v) for d_qk in self.widths or (self.d_qk,))

    @property
    def groups(self) -> int:
        return self.d_nope // self.group if self.group else 0

    @property
    def value_bytes(self) -> int:
        """Bytes of a token's values: quantised and bf16, without scales."""
        return self.quantised_bytes + 2 * self.d_rope

    @property
    def quantised_bytes(self) -> int:
        return self.d_nope // 2 if self.value == "e2m1" else self.d_nope

    @property
    def scales_bytes(self) -> int:
        """Bytes of a token's scales, padding included."""
        return self.groups * SCALE_BYTES[self.scale] + self.scales_padding

    @property
    def bytes_per_token(self) -> int:
        return self.value_bytes + self.scales_bytes

    def of_width(self, d_qk: int) -> Layout:
        """This layout for rows of ``d_qk`` values, itself where it has no such width."""
        return replace(self, d_nope=d_qk) if d_qk in self.widths else self

    def page_stride(self, page_block_size: int) -> int:
        """Bytes from one page to the next in a packed cache."""
        size = page_block_size * self.bytes_per_token
        return size + -size % self.page_multiple

    def views(self, cache: Tensor) -> tuple[Tensor, ...]:
        """``cache`` as uint8 tensors (num_blocks, page_block_size, 1, width) that share its memory
        and whose [page, offset] are the parts of one token, in the order ``decode`` takes."""
        self.check(cache)
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

    def encode(self, rows: Tensor, descale: Tensor | None = None) -> tuple[Tensor, ...]:
        """Quantise ``rows`` (..., d_qk): the token parts (..., width), uint8, as ``views``."""
        values = rows[..., : self.d_nope].float()
        if self.scale == "tensor":
            quantised = values if descale is None else values / descale
            return (numbers.to_e4m3(quantised),)
        grouped = values.unflatten(-1, (self.groups, self.group))
        codes, scale = self._scales(grouped.abs().amax(-1))
        grouped = grouped / scale.unsqueeze(-1)
        write = numbers.to_e2m1 if self.value == "e2m1" else numbers.to_e4m3
        packed = write(grouped.flatten(-2))
        rope = rows[..., self.d_nope :].to(torch.bfloat16).contiguous().view(torch.uint8)
        if self.paged_scales:
            padding = codes.new_zeros((*codes.shape[:-1], self.scales_padding))
            return torch.cat([packed, rope], -1), torch.cat([codes, padding], -1)
        return (torch.cat([packed, codes, rope], -1),)

    def _scales(self, amax: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and float32 values of the scales of groups with these largest |x|."""
        if self.scale == "e4m3":
            least = numbers.E2M1_MAX * numbers.MIN_E4M3
            codes = numbers.to_e4m3(amax.clamp(min=least) / numbers.E2M1_MAX)
            return codes, numbers.from_e4m3(codes)
        exponent = numbers.scale_exponent(amax)
        scale = numbers.power_of_two(exponent)
        if self.scale == "ue8m0":
            return exponent.to(torch.uint8), scale
        return scale.contiguous().view(torch.uint8), scale

    def decode(self, parts: tuple[Tensor, ...], descale: Tensor | None = None) -> Tensor:
        """The bfloat16 rows (..., d_qk) of token parts, whose last dimension is contiguous: value
        times scale in float32, rounded once."""
        token = parts[0]
        packed, rest = token[..., : self.quantised_bytes], token[..., self.quantised_bytes :]
        if self.scale == "tensor":
            values = numbers.from_e4m3(packed)
            return (values if descale is None else values * descale).to(torch.bfloat16)
        if self.paged_scales:
            rope, scales = rest, parts[1][..., : self.groups]
        else:
            scales, rope = rest.split([self.scales_bytes, 2 * self.d_rope], -1)
        values = (numbers.from_e2m1 if self.value == "e2m1" else numbers.from_e4m3)(packed)
        grouped = values.unflatten(-1, (self.groups, self.group))
        nope = (grouped * self._read_scales(scales).unsqueeze(-1)).flatten(-2).to(torch.bfloat16)
        return torch.cat([nope, rope.contiguous().view(torch.bfloat16)], -1)

    def _read_scales(self, raw: Tensor) -> Tensor:
        if self.scale == "ue8m0":
            return numbers.power_of_two(raw.to(torch.int32))
        if self.scale == "e4m3":
            return numbers.from_e4m3(raw)
        return raw.contiguous().view(torch.float32)

    def check(self, cache: Tensor) -> None:
        """Raise InvalidRequestError unless ``cache`` can be in this layout."""
        token = self.bytes_per_token
        if cache.dim() != 4 or cache.shape[2:] != (1, token) or cache.dtype not in ONE_BYTE:
            actual = f"{tuple(cache.shape)} {cache.dtype}"
            shape = f"(num_blocks, page_block_size, 1, {token})"
            raise InvalidRequestError(
                "FP8 cache", actual, f"{shape} of float8_e4m3fn, uint8 or int8 for {self.name!r}"
            )
        tight = cache.stride(3) == 1 and (
            not self.paged_scales or cache.shape[1] <= 1 or cache.stride(1) == token
        )
        if not tight:
            expected = f"the bytes of a {'page' if self.paged_scales else 'token'} side by side"
            raise InvalidRequestError("FP8 cache strides", cache.stride(), expected)

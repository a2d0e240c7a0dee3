"""FP8 cache layouts in bytes (contract C3.1), by numpy alone and by token.

A token is held as its own row of bytes, in the order of the layout's parts; ``page_bytes`` says
where those rows lie within a page. The hub's own converters are not used here: they are judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance import bits
from flashmla_hub.conformance.families import E4M3_CODES, FP8_POWER

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """One layout id: ``coded`` e4m3 values in groups of ``group``, scales, ``rope`` bf16 values.

    ``float_scales``: 4-byte float32 scales, else 1-byte ue8m0 with ``pad`` bytes after them.
    ``split``: the scale bytes of a page lie together behind its data, the page's stride rounded
    up to a multiple of its data bytes per token.
    """

    name: str
    coded: int
    group: int
    rope: int
    float_scales: bool
    split: bool
    pad: int = 0

    @property
    def groups(self) -> int:
        return self.coded // self.group

    @property
    def scale_bytes(self) -> int:
        return self.groups * (4 if self.float_scales else 1) + self.pad

    @property
    def token_bytes(self) -> int:
        return self.coded + self.scale_bytes + 2 * self.rope

    def page_stride(self, page_block_size: int) -> int:
        """Bytes from page to page in a packed pool."""
        data = self.token_bytes - self.scale_bytes
        size = page_block_size * self.token_bytes
        return -(-size // data) * data if self.split else size


LAYOUTS = {
    "v32": Layout("v32", 512, 128, 64, float_scales=True, split=False),
    "model1": Layout("model1", 448, 64, 64, float_scales=False, split=True, pad=1),
}


def draw_tokens(address: str, count: int, layout: Layout, family: str, free_scales: bool) -> Bytes:
    """Tokens as (count, token_bytes); scales are powers of two unless ``free_scales``."""
    codes = bits.draw(f"{address}/codes", (count, layout.coded), E4M3_CODES, bits.E4M3)
    raw = bits.words(f"{address}/scales", count * layout.groups).reshape(count, layout.groups)
    power = FP8_POWER[family] + (raw % np.uint64(3)).astype(np.int64) - 1
    scales = np.zeros((count, layout.scale_bytes), np.uint8)
    if layout.float_scales:
        mantissa = ((raw >> np.uint64(41)) if free_scales else raw * np.uint64(0)).astype(np.int64)
        pattern = (((power + 127) << 23) + mantissa).astype("<u4")
        scales[:] = pattern.view(np.uint8).reshape(count, -1)
    else:
        scales[:, : layout.groups] = power + 127
    spread = bits.Distribution((1 << (bits.SHIFT + FP8_POWER[family] + 5)) // bits.SIGMA)
    rope = bits.draw(f"{address}/rope", (count, layout.rope), spread, bits.BFLOAT16)
    parts = [codes, rope.astype("<u2").view(np.uint8).reshape(count, -1)]
    parts.insert(2 if layout.split else 1, scales)
    return np.concatenate(parts, axis=1).astype(np.uint8)


def poison_tokens(count: int, layout: Layout) -> Bytes:
    """Tokens that are NaN in every part."""
    token = np.full((count, layout.token_bytes), 0x7F, np.uint8)
    rope = np.tile(np.array([0xC0, 0x7F], np.uint8), layout.rope)
    if layout.split:
        token[:, layout.coded : layout.coded + 2 * layout.rope] = rope
        token[:, layout.coded + 2 * layout.rope :] = 0xFF
    else:
        nan32 = np.tile(np.array([0, 0, 0xC0, 0x7F], np.uint8), layout.groups)
        token[:, layout.coded : layout.coded + layout.scale_bytes] = nan32
        token[:, layout.coded + layout.scale_bytes :] = rope
    return token


def decode_tokens(tokens: Bytes, layout: Layout) -> NDArray[np.float64]:
    """(count, coded + rope) values: e4m3 * scale rounded to bf16 once, then the rope part."""
    count = len(tokens)
    scale_at = layout.coded + (2 * layout.rope if layout.split else 0)
    rope_at = layout.coded + (0 if layout.split else layout.scale_bytes)
    raw = np.ascontiguousarray(tokens[:, scale_at : scale_at + layout.scale_bytes])
    if layout.float_scales:
        scale = raw.view("<f4").astype(np.float64)
    else:
        scale = np.ldexp(1.0, raw[:, : layout.groups].astype(np.int32) - 127)
    value = bits.decode(tokens[:, : layout.coded], bits.E4M3)
    value = value * np.repeat(scale, layout.group, axis=1)
    rope = np.ascontiguousarray(tokens[:, rope_at : rope_at + 2 * layout.rope]).view("<u2")
    return np.concatenate(
        [round_bf16(value).reshape(count, -1), bits.decode(rope, bits.BFLOAT16)], axis=1
    )


def round_bf16(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 values rounded once to bf16's 8 significant bits, to nearest even."""
    fraction, power = np.frexp(value)
    return np.asarray(np.ldexp(np.rint(fraction * 256), power - 8))


def page_bytes(tokens: Bytes, layout: Layout) -> Bytes:
    """One page's memory, (page_stride,), from its tokens (page_block_size, token_bytes)."""
    page = np.zeros(layout.page_stride(len(tokens)), np.uint8)
    if not layout.split:
        page[:] = tokens.reshape(-1)
        return page
    data = layout.token_bytes - layout.scale_bytes
    page[: len(tokens) * data] = tokens[:, :data].reshape(-1)
    page[len(tokens) * data : tokens.size] = tokens[:, data:].reshape(-1)
    return page

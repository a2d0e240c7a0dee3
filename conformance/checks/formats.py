"""C3: the FP8 layouts' converters, held against the kit's own reading of the bytes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashmla_hub import NotSupportedError, kv_format
from flashmla_hub.conformance import bits, fp8
from flashmla_hub.conformance.trial import Trial, Wrong, raising

PAGES, SIZE = 3, 16
RESERVED = ("v32_no_rope", "v41", "v41_fp4")


def _layout(trial: Trial) -> fp8.Layout:
    return fp8.LAYOUTS[trial.case.key.kv_format]


def _rows(trial: Trial, count: int) -> Tensor:
    """bf16 tokens whose groups range over many magnitudes, zeros and large values among them."""
    layout = _layout(trial)
    width = layout.coded + layout.rope
    plain = bits.Distribution((1 << bits.SHIFT) // bits.SIGMA)
    drawn = bits.draw(f"{trial.case.id}/rows", (count, width), plain, bits.BFLOAT16)
    rows = torch.from_numpy(drawn.view(np.int16)).view(torch.bfloat16).clone()
    steps = torch.arange(count * layout.groups).reshape(count, layout.groups, 1) % 29 - 14
    coded = rows[:, : layout.coded].view(count, layout.groups, layout.group)
    coded *= torch.exp2(steps.float()).bfloat16()
    coded[0, 0] = 0
    return rows


def _cache(trial: Trial, tokens: NDArray[np.uint8]) -> Tensor:
    """A packed cache on the subject's device that holds these tokens in slot order."""
    layout = _layout(trial)
    stride = layout.page_stride(SIZE)
    pages = [fp8.page_bytes(tokens[i : i + SIZE], layout) for i in range(0, len(tokens), SIZE)]
    memory = torch.from_numpy(np.concatenate(pages)).to(trial.subject.device)
    width = layout.token_bytes
    view = memory.as_strided((len(pages), SIZE, 1, width), (stride, width, width, 1))
    return view.view(torch.float8_e4m3fn)


def _tokens(trial: Trial, cache: Tensor) -> NDArray[np.uint8]:
    """The tokens of a cache in slot order, read byte by byte."""
    layout = _layout(trial)
    raw = cache.view(torch.uint8).cpu()
    pages = raw.reshape(raw.shape[0], -1).numpy()
    if not layout.split:
        return pages.reshape(-1, layout.token_bytes)
    data = layout.token_bytes - layout.scale_bytes
    body = pages[:, : SIZE * data].reshape(-1, data)
    tail = pages[:, SIZE * data :].reshape(-1, layout.scale_bytes)
    return np.concatenate([body, tail], axis=1)


def expected_tokens(rows: Tensor, layout: fp8.Layout) -> NDArray[np.uint8]:
    """FlashMLA's quantiser in exact arithmetic: the bytes of each row's token."""
    values = rows.double().numpy()
    coded = values[:, : layout.coded].reshape(len(values), layout.groups, layout.group)
    amax = np.abs(coded).max(axis=2).astype(np.float32)
    # the published quantiser divides in float32
    ratio = np.maximum(amax / np.float32(448), np.float32(1e-4)).astype(np.float64)
    fraction, power = np.frexp(ratio)
    power = np.where(fraction == 0.5, power - 1, power).astype(np.int64)
    scaled = np.ldexp(coded, -power[:, :, None].astype(np.int32))
    number = np.rint(np.ldexp(scaled, bits.SHIFT)).astype(np.int64)
    codes = bits.round_to(number, bits.E4M3).reshape(len(values), -1)
    signed = np.where(np.signbit(scaled).reshape(codes.shape), codes | 0x80, codes)
    scales = np.zeros((len(values), layout.scale_bytes), np.uint8)
    if layout.float_scales:
        scales[:] = ((power + 127) << 23).astype("<u4").view(np.uint8).reshape(len(values), -1)
    else:
        scales[:, : layout.groups] = power + 127
    rope = rows[:, layout.coded :].contiguous().view(torch.uint8).numpy()
    parts = [signed.astype(np.uint8), rope]
    parts.insert(2 if layout.split else 1, scales)
    return np.concatenate(parts, axis=1)


def _compare(trial: Trial, got: NDArray[np.uint8], want: NDArray[np.uint8], clause: str) -> None:
    layout = _layout(trial)
    if layout.pad:  # the padding byte of the scales means nothing
        got, want = got[:, : -layout.pad], want[:, : -layout.pad]
    if not np.array_equal(got, want):
        token, byte = (int(i) for i in np.argwhere(got != want)[0])
        raise Wrong(clause, f"token {token}, byte {byte}: expected {want[token, byte]:#04x}, got "
                    f"{got[token, byte]:#04x}")  # fmt: skip


def quantise(trial: Trial) -> None:
    """C3.1: quantising bf16 gives the published quantiser's bytes."""
    layout, rows = _layout(trial), _rows(trial, PAGES * SIZE)
    cache = rows.view(PAGES, SIZE, 1, -1).to(trial.subject.device)
    quantised = kv_format.quantize(cache, layout.name)
    stride = layout.page_stride(SIZE)
    if quantised.stride(0) != stride:
        raise Wrong("C3.1", f"page stride: got {quantised.stride(0)}, expected {stride}")
    _compare(trial, _tokens(trial, quantised), expected_tokens(rows, layout), "C3.1")


def round_trip(trial: Trial) -> None:
    """C3.1: what a layout represents comes back bit for bit, and quantises to itself."""
    layout = _layout(trial)
    tokens = fp8.draw_tokens(f"{trial.case.id}/tokens", PAGES * SIZE, layout, "peaked", False)
    back = kv_format.dequantize(_cache(trial, tokens), layout.name).cpu().double()
    want = fp8.decode_tokens(tokens, layout)
    got = back.reshape(len(tokens), -1).numpy()
    if not np.array_equal(got, want):
        token, column = (int(i) for i in np.argwhere(got != want)[0])
        raise Wrong("C3.1", f"token {token}, column {column}: expected {want[token, column]:.9g}, "
                    f"got {got[token, column]:.9g}")  # fmt: skip
    again = kv_format.quantize(back.bfloat16().to(trial.subject.device), layout.name)
    twice = kv_format.dequantize(again, layout.name).cpu().double()
    if not torch.equal(twice, back):
        raise Wrong("C3.1", "a dequantised cache changed when quantised and dequantised again")


def append(trial: Trial) -> None:
    """C3.3: new tokens are written into their slots, and nothing else is."""
    layout = _layout(trial)
    before = fp8.draw_tokens(f"{trial.case.id}/before", PAGES * SIZE, layout, "peaked", False)
    cache = _cache(trial, before)
    rows = _rows(trial, 5)
    slots = torch.tensor([3, SIZE - 1, SIZE, PAGES * SIZE - 1, -1], dtype=torch.int32)
    kv_format.append(cache, rows.to(cache.device), slots.to(cache.device), layout=layout.name)
    want = before.copy()
    want[slots[:4].long().numpy()] = expected_tokens(rows, layout)[:4]
    _compare(trial, _tokens(trial, cache), want, "C3.3")


def names(trial: Trial) -> None:
    """C3.0: a reserved id is refused by name, not guessed from a byte count."""
    trial.require()
    for name in RESERVED:
        error = raising(lambda n=name: trial.subject.run(trial.call, kv_format=n))  # type: ignore[misc]
        if not isinstance(error, NotSupportedError) or name not in str(error):
            raise Wrong("C3.0", f"kv_format={name!r}: got {error!r}, expected NotSupportedError "
                        "naming it")  # fmt: skip

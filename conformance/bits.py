"""Random input bits by integer arithmetic alone: the same on every machine, numpy and torch.

A 64-bit Philox word gives one number: the sum of its four 16-bit lanes, centred, is close to
normal (standard deviation ``SIGMA``, never past 3.47 of them). A number times a fixed integer,
shifted, plus a fixed offset, rounded to nearest even in integer code, is the bit pattern of a
float. As there are only 4 * 65535 + 1 sums, rounding is a table lookup.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUMS = 4 * 65535 + 1
CENTRE = 2 * 65535
SIGMA = 37837  # sqrt(4 * (2**32 - 1) / 12), rounded
SHIFT = 32  # numbers are integers in units of 2**-32


@dataclass(frozen=True)
class Float:
    """A binary format: bits of mantissa and exponent, storage type, the largest finite code."""

    name: str
    mantissa: int
    exponent: int
    storage: str
    max_code: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa


BFLOAT16 = Float("bfloat16", 7, 8, "uint16", 0x7F7F)
FLOAT16 = Float("float16", 10, 5, "uint16", 0x7BFF)
FLOAT32 = Float("float32", 23, 8, "uint32", 0x7F7FFFFF)
E4M3 = Float("e4m3", 3, 4, "uint8", 0x7E)  # the finite-only kind: 448 is the largest
FORMATS = {f.name: f for f in (BFLOAT16, FLOAT16, FLOAT32, E4M3)}


@dataclass(frozen=True)
class Distribution:
    """value = sum * factor / 2**32 + one of ``offsets`` / 2**32; ``whole``: rounded to integers.

    ``factor`` is chosen as spread * 2**32 / SIGMA; offsets are in units of 2**-32.
    """

    factor: int
    offsets: tuple[int, ...] = (0,)
    whole: bool = False


def words(address: str, count: int) -> NDArray[np.uint64]:
    """``count`` raw 64-bit words of the Philox4x64-10 stream that ``address`` names."""
    key = int.from_bytes(hashlib.sha256(address.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key, counter=0).random_raw(count)
    return np.asarray(raw, dtype=np.uint64)


def lane_sums(raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The sum of each word's four 16-bit lanes, 0 .. SUMS - 1."""
    mask = np.uint64(0xFFFF)
    total = raw & mask
    for shift in (16, 32, 48):
        total = total + ((raw >> np.uint64(shift)) & mask)
    return total.astype(np.int64)


def draw(
    address: str, shape: tuple[int, ...], distribution: Distribution, kind: Float,
    choice: NDArray[np.int64] | None = None,
) -> NDArray[np.unsignedinteger]:  # fmt: skip
    """Bit patterns of ``kind``, ``shape``; ``choice`` (broadcastable) picks among the offsets."""
    index = lane_sums(words(address, int(np.prod(shape)))).reshape(shape)
    if choice is not None:
        index = index + choice * SUMS
    return table(distribution, kind)[index]


def signs(address: str, count: int) -> NDArray[np.int64]:
    """``count`` values 0 or 1: the top bit of a word each."""
    return (words(address, count) >> np.uint64(63)).astype(np.int64)


def permutation(address: str, count: int) -> list[int]:
    """A random order of range(count)."""
    return [int(i) for i in np.argsort(words(address, count), kind="stable")]


@functools.lru_cache(maxsize=64)
def table(distribution: Distribution, kind: Float) -> NDArray[np.unsignedinteger]:
    """The bit pattern of every sum under every offset, offsets outermost."""
    sums = np.arange(SUMS, dtype=np.int64) - CENTRE
    rows = []
    for offset in distribution.offsets:
        number = sums * distribution.factor + offset
        if distribution.whole:
            number = ((number + (1 << (SHIFT - 1))) >> SHIFT) << SHIFT
        rows.append(round_to(number, kind))
    return np.concatenate(rows)


def round_to(number: NDArray[np.int64], kind: Float) -> NDArray[np.unsignedinteger]:
    """Bit patterns of number * 2**-32 in ``kind``, to nearest even, saturating; -0 becomes +0."""
    magnitude = np.abs(number)
    length = np.zeros_like(magnitude)  # bit length, by halving
    rest = magnitude.copy()
    for step in (32, 16, 8, 4, 2, 1):
        big = (rest >> step) > 0
        length += np.where(big, step, 0)
        rest = np.where(big, rest >> step, rest)
    length += rest
    # the unit of the result: one mantissa step of a normal, fixed for subnormals
    exponent = np.maximum(length - 1 - SHIFT, 1 - kind.bias)
    drop = exponent - kind.mantissa + SHIFT  # how many low bits of the number go
    down = np.maximum(drop, 0)
    kept = magnitude >> down
    remainder = magnitude - (kept << down)
    half = np.where(down > 0, np.int64(1) << np.maximum(down - 1, 0), 0)
    up = (remainder > half) | ((remainder == half) & (down > 0) & (kept & 1 == 1))
    kept = np.where(drop < 0, kept << np.maximum(-drop, 0), kept + up)
    # kept includes the hidden bit; adding it to the exponent field carries where it must
    field = np.where(length > 0, exponent + kind.bias - 1, 0) << kind.mantissa
    code = np.minimum(field + kept, kind.max_code)
    sign = np.where((number < 0) & (code > 0), np.int64(1) << (kind.bits - 1), 0)
    return (code + sign).astype(kind.storage)


def decode(code: NDArray[np.unsignedinteger], kind: Float) -> NDArray[np.float64]:
    """The exact values of bit patterns; the format's infinities and NaNs included."""
    wide = code.astype(np.int64)
    if kind is FLOAT32:
        return code.astype(np.uint32).view(np.float32).astype(np.float64)
    if kind is FLOAT16:
        return code.astype(np.uint16).view(np.float16).astype(np.float64)
    if kind is BFLOAT16:
        return (code.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    field = (wide >> kind.mantissa) & ((1 << kind.exponent) - 1)
    fraction = wide & ((1 << kind.mantissa) - 1)
    hidden = np.where(field > 0, 1 << kind.mantissa, 0)
    power = np.maximum(field, 1) - kind.bias - kind.mantissa
    value = np.ldexp((fraction + hidden).astype(np.float64), power.astype(np.int32))
    value = np.where(wide & 0x7F == 0x7F, np.nan, value)  # E4M3's one NaN
    return np.where(wide >> (kind.bits - 1) > 0, -value, value)

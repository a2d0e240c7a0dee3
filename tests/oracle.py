"""What the contract says, computed the slow way in float64: the oracle of the tests.

Shares no code with the package. One request, one query, one head at a time, over exactly the keys
that are visible; FP8 caches are read byte by byte. ``check`` applies the tolerances of C1.12.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Expected(NamedTuple):
    """float64 results; ``v_rms`` is the rms of V over the keys visible to each query and head.

    out (batch, s_q, h_q, d_v), lse, max_logits and v_rms (batch, h_q, s_q).
    """

    out: Tensor
    lse: Tensor
    max_logits: Tensor
    v_rms: Tensor


def _e4m3(byte: int) -> float:
    sign, exponent, mantissa = -1.0 if byte & 0x80 else 1.0, (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([_e4m3(byte) for byte in range(256)])
UE8M0 = np.array([math.nan if byte == 255 else 2.0 ** (byte - 127) for byte in range(256)])


E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] * 2) * np.repeat([1.0, -1.0], 8)


def _bf16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).double().numpy()


def _rope(raw: np.ndarray) -> np.ndarray:
    bits = raw.copy().view("<u2").astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


def _token_v32(page: np.ndarray, offset: int) -> np.ndarray:
    token = page[offset]
    scales = token[512:528].copy().view("<f4").astype(np.float64).repeat(128)
    return np.concatenate([_bf16(E4M3[token[:512]] * scales), _rope(token[528:656])])


def _token_model1(page: np.ndarray, offset: int) -> np.ndarray:
    flat = page.reshape(-1)
    token = flat[576 * offset : 576 * (offset + 1)]
    scales = flat[576 * len(page) + 8 * offset :][:7]
    return np.concatenate([_bf16(E4M3[token[:448]] * UE8M0[scales].repeat(64)), _rope(token[448:])])


def _token_v32_no_rope(page: np.ndarray, offset: int) -> np.ndarray:
    token = page[offset]
    scales = token[512:528].copy().view("<f4").astype(np.float64).repeat(128)
    return _bf16(E4M3[token[:512]] * scales)


def _token_v41(page: np.ndarray, offset: int) -> np.ndarray:
    token = page[offset]
    return _bf16(E4M3[token[:512]] * UE8M0[token[512:528]].repeat(32))


def _token_v41_fp4(page: np.ndarray, offset: int) -> np.ndarray:
    token = page[offset]
    codes = np.stack([token[:256] & 15, token[:256] >> 4], axis=1).reshape(512)
    return _bf16(E2M1[codes] * E4M3[token[256:288]].repeat(16))


def _token_fp8(page: np.ndarray, offset: int) -> np.ndarray:
    return E4M3[page[offset]]


TOKENS = {
    "v32": _token_v32,
    "model1": _token_model1,
    "v32_no_rope": _token_v32_no_rope,
    "v41": _token_v41,
    "v41_fp4": _token_v41_fp4,
    "fp8": _token_fp8,
}


class Cache:
    """K of one (page, offset, KV head) at a time, in float64. ``descale``: of the layout fp8."""

    def __init__(self, cache: Tensor, kv_format: str, descale: float = 1.0) -> None:
        self.format, self.descale = kv_format, descale
        self.tokens, self.page_size = cache.shape[0] * cache.shape[1], cache.shape[1]
        raw = cache if kv_format == "dense" else cache.view(torch.uint8)
        self.cache = raw.cpu()

    def key(self, page: int, offset: int, head: int) -> Tensor:
        if self.format == "dense":
            return self.cache[page, offset, head].double()
        page_bytes = self.cache[page, :, 0].contiguous().numpy()
        token = TOKENS[self.format](page_bytes, offset)
        return torch.from_numpy(_bf16(token * self.descale) if self.format == "fp8" else token)

    def keys(self, slots: Iterable[int], head: int) -> Tensor:
        """(number of slots, d_qk)."""
        rows = [self.key(slot // self.page_size, slot % self.page_size, head) for slot in slots]
        return torch.stack(rows) if rows else torch.empty(0, 0, dtype=torch.float64)


def _one(q: Tensor, k: Tensor, d_v: int, scale: float, sink: float | None) -> tuple:
    """One query and head over its visible keys: out, lse, largest logit, rms of V."""
    if not len(k):
        return torch.zeros(d_v, dtype=torch.float64), math.inf, -math.inf, 0.0
    logits = k @ q.double().cpu() * scale
    top = logits.max()
    weights = (logits - top).exp()
    out = weights @ k[:, :d_v] / weights.sum()
    lse = float(top + weights.sum().log())
    if sink is not None:
        gap = sink - lse
        out = out * (0.0 if gap > 700 else 1 / (1 + math.exp(gap)))
    return out, lse, float(top), float(k[:, :d_v].square().mean().sqrt())


def _collect(q: Tensor, d_v: int, one_query: object) -> Expected:
    batch, s_q, h_q, _ = q.shape
    out = torch.empty(batch, s_q, h_q, d_v, dtype=torch.float64)
    rest = torch.empty(3, batch, h_q, s_q, dtype=torch.float64)
    for b in range(batch):
        for t in range(s_q):
            for h in range(h_q):
                out[b, t, h], *numbers = one_query(b, t, h)  # type: ignore[operator]
                rest[:, b, h, t] = torch.tensor(numbers, dtype=torch.float64)
    return Expected(out, *rest)


def dense_decode(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    d_v: int,
    softmax_scale: float,
    causal: bool = False,
    kv_format: str = "dense",
    descale: float = 1.0,
) -> Expected:
    cache, group = Cache(k_cache, kv_format, descale), q.shape[2] // k_cache.shape[2]
    size, s_q = cache.page_size, q.shape[1]
    capacity = block_table.shape[1] * size
    lens = [min(max(n, 0), capacity) for n in cache_seqlens.tolist()]

    @functools.cache
    def keys_of(b: int, head: int) -> Tensor:
        pages = block_table[b, : -(-lens[b] // size)].tolist()
        return cache.keys([pages[j // size] * size + j % size for j in range(lens[b])], head)

    def one(b: int, t: int, h: int) -> tuple:
        visible = max(lens[b] - s_q + t + 1, 0) if causal else lens[b]
        return _one(q[b, t, h], keys_of(b, h // group)[:visible], d_v, softmax_scale, None)

    return _collect(q, d_v, one)


def _alive(indices: Tensor, limit: int | None, tokens: int) -> list[int]:
    entries = indices.tolist() if limit is None else indices.tolist()[: max(limit, 0)]
    return [slot for slot in entries if 0 <= slot < tokens]


def sparse_decode(
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor,
    *,
    d_v: int,
    softmax_scale: float,
    topk_length: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
    kv_format: str = "dense",
    extra_kv_format: str = "",
    descale: float = 1.0,
) -> Expected:
    group = q.shape[2] // k_cache.shape[2]
    lists = [(Cache(k_cache, kv_format, descale), indices, topk_length)]
    if extra_k_cache is not None and extra_indices is not None:
        second = Cache(extra_k_cache, extra_kv_format or kv_format, descale)
        lists.append((second, extra_indices, extra_topk_length))

    @functools.cache
    def keys_of(b: int, t: int, head: int) -> Tensor:
        parts = []
        for cache, slots, length in lists:
            limit = None if length is None else int(length[b])
            parts.append(cache.keys(_alive(slots[b, t], limit, cache.tokens), head))
        return torch.cat([part for part in parts if len(part)] or parts[:1])

    def one(b: int, t: int, h: int) -> tuple:
        sink = None if attn_sink is None else float(attn_sink[h])
        return _one(q[b, t, h], keys_of(b, t, h // group), d_v, softmax_scale, sink)

    return _collect(q, d_v, one)


def sparse_prefill(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    d_v: int,
    softmax_scale: float,
    topk_length: Tensor | None = None,
    attn_sink: Tensor | None = None,
) -> Expected:
    """As the others with queries for rows: out (s_q, 1, h_q, d_v), the rest (s_q, h_q, 1)."""
    group, cache = q.shape[1] // kv.shape[1], Cache(kv.unsqueeze(1), "dense")

    @functools.cache
    def keys_of(b: int, head: int) -> Tensor:
        limit = None if topk_length is None else int(topk_length[b])
        return cache.keys(_alive(indices[b, head], limit, cache.tokens), head)

    def one(b: int, t: int, h: int) -> tuple:
        sink = None if attn_sink is None else float(attn_sink[h])
        return _one(q[b, h], keys_of(b, h // group), d_v, softmax_scale, sink)

    return _collect(q.unsqueeze(1), d_v, one)


def check(
    out: Tensor, lse: Tensor, expected: Expected, case: object = "", *, lse_factor: float = 1.0,
    extreme: bool = False,
) -> None:  # fmt: skip
    """Raise AssertionError naming ``case`` unless out and lse are within C1.12 of ``expected``."""
    fp32 = out.dtype == torch.float32
    x, y = out.double().cpu(), expected.out
    a = (expected.v_rms / 0.1).clamp(min=1).transpose(1, 2).unsqueeze(-1)
    limit = 1e-5 + 1e-5 * y.abs() if fp32 else 8e-4 * a + 2.01 / 128 * y.abs()
    _within("out", x, y, limit, case)
    cosine = _cosine_difference(x, y, dim=-1)
    assert cosine.max() <= 1e-5, f"{case}: cosine difference of a vector {cosine.max():.2e}"
    whole = _cosine_difference(x.flatten(), y.flatten(), dim=0)
    assert whole <= 5e-6, f"{case}: cosine difference of the tensor {whole:.2e}"

    x, y = lse.double().cpu(), expected.lse
    assert torch.equal(x.isposinf(), y.isposinf()), f"{case}: +inf of lse at the wrong places"
    finite = y.isfinite()
    relative = 2e-6 if fp32 else 8.01 / 65536
    absolute = 0.0 if extreme and not fp32 else 1e-6
    limit = lse_factor * (absolute + relative * y.abs())
    _within("lse", x[finite], y[finite], limit[finite], case)


def _within(name: str, x: Tensor, y: Tensor, limit: Tensor, case: object) -> None:
    bad = ~((x - y).abs() <= limit)
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{case}: {name} differs at {int(bad.sum())} of {bad.numel()} places, first {at}: "
            f"{x[at].item():.6g}, expected {y[at].item():.6g} within {limit[at].item():.2g}"
        )


def _cosine_difference(x: Tensor, y: Tensor, dim: int) -> Tensor:
    norm = (x * x + y * y).sum(dim)
    return torch.where(norm == 0, 0.0, 1 - 2 * (x * y).sum(dim) / norm)

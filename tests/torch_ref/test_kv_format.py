"""The FP8 layouts: converters both ways, byte for byte, and appending in place (contract C3)."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch

from flashmla_hub import kv_format
from flashmla_hub.errors import InvalidRequestError

LAYOUTS = tuple(kv_format.LAYOUTS)
PAGES = (1, 3, 64, 72, 256)


def representable(name: str, pages: int, page: int, seed: int = 0) -> torch.Tensor:
    """K that the layout holds exactly: every e4m3 value, times a scale in which 448 occurs."""
    layout = kv_format.get(name)
    rng = torch.Generator().manual_seed(seed)
    finite = torch.from_numpy(oracle.E4M3[~np.isnan(oracle.E4M3)]).float()
    if name == "fp8":  # one scale for the tensor, here 1
        return finite[torch.randint(254, (pages, page, 1, layout.d_qk), generator=rng)].bfloat16()
    if name == "v41_fp4":  # e2m1 values times e4m3 scales
        shape = (pages, page, 1, 32, 16)
        values = torch.from_numpy(oracle.E2M1).float()[torch.randint(16, shape, generator=rng)]
        values[..., 0] = 6.0
        scale = torch.from_numpy(oracle.E4M3[1:127]).float()
        scale = scale[torch.randint(126, (*shape[:-1], 1), generator=rng)]
        return (values * scale).flatten(-2).bfloat16()
    shape = (pages, page, 1, layout.groups, layout.group)
    values = finite[torch.randint(len(finite), shape, generator=rng)]
    values[..., 0] = 448.0
    exponent = torch.randint(-13, 20, (*shape[:-1], 1), generator=rng)
    nope = (values * torch.exp2(exponent.float())).flatten(-2)
    rope = torch.randn(pages, page, 1, layout.d_rope, generator=rng)
    return torch.cat([nope, rope], -1).bfloat16()


def oracle_rows(cache: torch.Tensor, name: str) -> torch.Tensor:
    reader = oracle.Cache(cache, name)
    slots = range(reader.tokens)
    return reader.keys(slots, 0).view(*cache.shape[:3], -1)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_round_trip_is_bit_exact_on_representable_values(name: str, page: int) -> None:
    k = representable(name, 2, page)
    cache = kv_format.quantize(k, name)
    layout = kv_format.get(name)
    assert cache.shape == (2, page, 1, layout.bytes_per_token)
    assert cache.dtype == torch.float8_e4m3fn
    assert cache.stride(0) == layout.page_stride(page)
    back = kv_format.dequantize(cache, name)
    assert torch.equal(back.view(torch.int16), k.view(torch.int16))
    again = kv_format.quantize(back, name)
    assert torch.equal(again.view(torch.uint8), cache.view(torch.uint8))
    assert torch.equal(oracle_rows(cache, name), k.double())


def test_sizes_are_the_published_ones() -> None:
    v32, model1 = kv_format.get("v32"), kv_format.get("model1")
    assert (v32.d_qk, v32.d_v, v32.bytes_per_token, v32.page_stride(64)) == (576, 512, 656, 41984)
    assert (model1.d_qk, model1.d_v, model1.bytes_per_token) == (512, 512, 584)
    assert [model1.page_stride(n) for n in (1, 2, 64, 72)] == [1152, 1728, 37440, 42048]


@pytest.mark.parametrize("name", ["v32", "model1", "v32_no_rope", "v41"])
def test_scales_and_values_follow_the_rule(name: str) -> None:
    """scale = 2 ** ceil(log2(max(amax / 448, 1e-4))), value = e4m3(x / scale)."""
    layout = kv_format.get(name)
    rng = torch.Generator().manual_seed(1)
    size = torch.exp2(torch.randint(-30, 30, (4, 5, 1, 1), generator=rng).float())
    k = (torch.randn(4, 5, 1, layout.d_qk, generator=rng) * size).bfloat16()
    k[0, 0] = 0
    k[0, 1, 0, 3] = 448.0 * 2**5  # on the boundary: 2 ** 5, not 2 ** 6
    k[0, 1] = k[0, 1].clamp(-448 * 2**5, 448 * 2**5)
    token = oracle.Cache(kv_format.quantize(k, name), name)
    for page, offset in np.ndindex(4, 5):
        x = k[page, offset, 0].double()
        got = token.key(page, offset, 0)
        for group in range(layout.groups):
            part = slice(group * layout.group, (group + 1) * layout.group)
            amax = float(x[part].abs().max())
            scale = 2.0 ** math.ceil(math.log2(max(amax / 448, 1e-4)))
            values = torch.from_numpy(oracle.E4M3[:127])
            nearest = (x[part, None].abs() / scale - values).abs()
            error = (got[part] - x[part]).abs() / scale
            assert torch.equal(error, nearest.min(-1).values), (page, offset, group)
        assert torch.equal(got[layout.d_nope :], x[layout.d_nope :])


def test_an_exponent_byte_reads_as_its_power() -> None:
    token = torch.full((1, 1, 1, 576), 0x38, dtype=torch.uint8)  # e4m3 1.0
    for byte in (0, 1, 127, 254, 255):
        scales = torch.full((1, 1, 1, 8), byte, dtype=torch.uint8)
        got = kv_format.get("model1").decode((token, scales))[..., 0]
        wanted = torch.tensor(oracle.UE8M0[byte]).bfloat16()
        torch.testing.assert_close(got.squeeze(), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_that_are_not_finite_stay_so_and_spoil_no_other(name: str) -> None:
    k = representable(name, 1, 3)
    k[0, 0, 0, 5] = math.inf
    k[0, 2, 0, 7] = math.nan
    back = kv_format.dequantize(kv_format.quantize(k, name), name)
    assert torch.equal(back[0, 1], k[0, 1])
    assert not back[0, 0, 0, 5].isfinite() and not back[0, 2, 0, 7].isfinite()


@pytest.mark.parametrize("name", ["dense", *LAYOUTS])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_append_writes_its_slots_and_nothing_else(name: str, integer: torch.dtype) -> None:
    k = representable("v32" if name == "dense" else name, 4, 5)
    rows = representable("v32" if name == "dense" else name, 1, 6, seed=2)[0, :, 0]
    slots = torch.tensor([7, -1, 0, 19, -5, 12], dtype=integer)
    pool = torch.zeros(4, 8, 1, k.shape[-1]).bfloat16() if name == "dense" else None
    cache = k.clone() if pool is None else pool[:, :5].copy_(k)
    if name != "dense":
        cache = kv_format.quantize(k, name)
    kv_format.append(cache, rows, slots, layout=name)
    wanted = k.clone()
    for row, slot in zip(rows, slots.tolist(), strict=True):
        if slot >= 0:
            wanted[slot // 5, slot % 5, 0] = row
    got = cache if name == "dense" else kv_format.dequantize(cache, name)
    assert torch.equal(got, wanted)
    if name != "dense":
        whole = kv_format.quantize(wanted, name)
        assert torch.equal(cache.view(torch.uint8), whole.view(torch.uint8))


@pytest.mark.parametrize("name", LAYOUTS)
def test_append_into_a_strided_pool(name: str) -> None:
    layout = kv_format.get(name)
    raw = torch.full((3, layout.page_stride(4) + 1152), 0xAB, dtype=torch.uint8)
    cache = raw[:, : 4 * layout.bytes_per_token].unflatten(1, (4, 1, layout.bytes_per_token))
    k = representable(name, 3, 4)
    kv_format.append(cache, k.reshape(12, 1, -1), torch.arange(12), layout=name)
    assert torch.equal(kv_format.dequantize(cache, name), k)
    assert (raw[:, 4 * layout.bytes_per_token :] == 0xAB).all()


@pytest.mark.parametrize("name", ["dense", *LAYOUTS])
def test_append_skips_slots_past_the_cache_and_reads_negated_rows(name: str) -> None:
    k = representable("v32" if name == "dense" else name, 2, 4)
    rows = representable("v32" if name == "dense" else name, 1, 3, seed=2)[0, :, 0]
    cache = k.clone() if name == "dense" else kv_format.quantize(k, name)
    slots = torch.tensor([8, 3, 2**31 - 1], dtype=torch.int32)
    kv_format.append(cache, torch._neg_view(rows), slots, layout=name)
    got = cache if name == "dense" else kv_format.dequantize(cache, name)
    k.view(8, -1)[3] = -rows[1]
    assert torch.equal(got, k)
    if name != "dense":
        whole = kv_format.quantize(torch._neg_view(k), name)
        assert torch.equal(kv_format.dequantize(whole, name), -k)


def test_append_of_skipped_tokens_alone_changes_nothing() -> None:
    for name in LAYOUTS:
        cache = kv_format.quantize(representable(name, 1, 2), name)
        before = cache.view(torch.uint8).clone()
        rows = representable(name, 1, 2, seed=3).view(2, -1)
        kv_format.append(cache, rows, torch.tensor([-1, -1]), layout=name)
        kv_format.append(cache, rows[:0], torch.tensor([], dtype=torch.int64), layout=name)
        assert torch.equal(cache.view(torch.uint8), before)


def test_append_never_reads_values_on_the_host() -> None:
    for name in LAYOUTS:
        layout = kv_format.get(name)
        with torch.device("meta"):
            cache = torch.empty(2, 4, 1, layout.bytes_per_token, dtype=torch.float8_e4m3fn)
            rows = torch.empty(3, layout.d_qk, dtype=torch.bfloat16)
            kv_format.append(cache, rows, torch.empty(3, dtype=torch.int32), layout=name)


def test_names_decide_not_sizes() -> None:
    assert kv_format.default_for(576) == "v32"
    assert kv_format.default_for(512) == "model1"
    with pytest.raises(InvalidRequestError, match="320"):
        kv_format.default_for(320)
    with pytest.raises(InvalidRequestError, match=r"v99.*v32"):
        kv_format.get("v99")


def test_wrong_arguments_are_named() -> None:
    k = representable("v32", 1, 2)
    cache = kv_format.quantize(k, "v32")
    with pytest.raises(InvalidRequestError, match=r"^k: "):
        kv_format.quantize(k[..., :512], "v32")
    with pytest.raises(InvalidRequestError, match="584"):
        kv_format.dequantize(cache, "model1")
    with pytest.raises(InvalidRequestError, match="layout="):
        kv_format.append(cache, k.view(2, -1), torch.arange(2))
    with pytest.raises(InvalidRequestError, match=r"^rows: "):
        kv_format.append(cache, k.view(2, -1), torch.arange(3), layout="v32")
    with pytest.raises(InvalidRequestError, match=r"^slots: "):
        kv_format.append(cache, k.view(2, -1), torch.arange(2.0), layout="v32")
    spread = torch.empty(1, 4, 1, 584, dtype=torch.uint8)[:, ::2]
    with pytest.raises(InvalidRequestError, match="side by side"):
        kv_format.dequantize(spread, "model1")

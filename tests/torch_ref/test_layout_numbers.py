"""Every code of every small number, in every layout, against a numpy rule that shares no code."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch

from flashmla_hub import kv_format
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.layouts import numbers

CODES = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)


def decoded(layout: str, token: np.ndarray, descale: float | None = None) -> np.ndarray:
    """What the hub reads from the bytes of one token (a page of one for a paged layout)."""
    cache = torch.from_numpy(token.copy()).view(1, 1, 1, -1)
    return kv_format.dequantize(cache, layout, torch.float64, descale)[0, 0, 0].numpy()


def test_all_254_finite_codes_of_e4m3() -> None:
    values = numbers.from_e4m3(torch.from_numpy(CODES)).double().numpy()
    assert len(CODES) == 254
    assert np.array_equal(values, oracle.E4M3[CODES])
    back = numbers.to_e4m3(torch.from_numpy(oracle.E4M3[CODES]).float()).numpy()
    assert np.array_equal(back, CODES)


def test_all_255_exponents_of_ue8m0() -> None:
    read = numbers.power_of_two(torch.arange(256, dtype=torch.int32)).double().numpy()
    assert np.array_equal(read[:255], np.ldexp(1.0, np.arange(255) - 127))
    assert math.isnan(read[255])


def test_all_16_codes_of_e2m1_in_both_nibbles() -> None:
    pairs = torch.arange(256, dtype=torch.uint8)
    read = numbers.from_e2m1(pairs.view(256, 1)).double().numpy()
    wanted = np.stack([oracle.E2M1[np.arange(256) & 15], oracle.E2M1[np.arange(256) >> 4]], 1)
    assert np.array_equal(read, wanted)
    assert np.array_equal(np.signbit(read), np.signbit(wanted))  # -0 too
    assert torch.equal(numbers.to_e2m1(torch.from_numpy(read).float()), pairs.view(256, 1))


def test_e2m1_rounds_to_the_nearest_ties_to_the_even_code() -> None:
    x = torch.arange(-8, 8, 1 / 64).view(-1, 2)
    got = numbers.from_e2m1(numbers.to_e2m1(x)).flatten().numpy()
    grid = oracle.E2M1[:8]
    for value, rounded in zip(x.flatten().numpy(), got, strict=True):
        distance = np.abs(grid - abs(value))
        best = np.flatnonzero(distance == distance.min())
        code = best[0] if len(best) == 1 else next(i for i in best if i % 2 == 0)
        assert abs(rounded) == grid[code], value


@pytest.mark.parametrize("layout", ["v32", "v32_no_rope", "v41", "model1"])
def test_each_code_with_each_scale_reads_as_its_product_rounded_once(layout: str) -> None:
    fmt = kv_format.get(layout)
    page = np.zeros((1, fmt.bytes_per_token), np.uint8)
    for exponent in range(255):
        page[0, : fmt.d_nope] = np.resize(np.roll(CODES, exponent), fmt.d_nope)
        scales = page[0, fmt.value_bytes :] if fmt.paged_scales else page[0, fmt.d_nope :]
        if fmt.scale == "ue8m0":
            scales[: fmt.groups] = exponent
        else:
            scale = np.full(fmt.groups, np.ldexp(1.0, exponent - 127), "<f4")
            scales[: 4 * fmt.groups] = scale.view(np.uint8)
        wanted = oracle.TOKENS[layout](page, 0)
        assert np.array_equal(decoded(layout, page[0]), wanted), exponent


def test_each_pair_of_nibbles_with_each_scale() -> None:
    page = np.zeros((1, 288), np.uint8)
    page[0, :256] = np.arange(256)
    for start in range(0, 254, 32):
        page[0, 256:] = np.resize(np.roll(CODES, -start), 32)
        wanted = oracle.TOKENS["v41_fp4"](page, 0)
        assert np.array_equal(decoded("v41_fp4", page[0]), wanted)


def test_scales_of_e2m1_groups_follow_the_rule() -> None:
    """scale = e4m3(max(amax, 6 * 2**-9) / 6), value = e2m1(x / scale)."""
    rng = torch.Generator().manual_seed(5)
    size = torch.exp2(torch.randint(-12, 12, (1, 40, 1, 1), generator=rng).float())
    k = (torch.randn(1, 40, 1, 512, generator=rng) * size).bfloat16()
    k[0, 0] = 0
    raw = kv_format.quantize(k, "v41_fp4").view(torch.uint8)
    for token in range(40):
        x = k[0, token, 0].double().numpy()
        for group in range(32):
            part = x[16 * group : 16 * group + 16]
            wanted = np.float32(max(np.abs(part).max(), 6 * 2.0**-9)) / np.float32(6)
            code = np.abs(oracle.E4M3[:127] - wanted).argmin()
            scale = oracle.E4M3[raw[0, token, 0, 256 + group].item()]
            assert abs(scale - wanted) <= abs(oracle.E4M3[code] - wanted), (token, group)
            got = oracle.TOKENS["v41_fp4"](raw[0, token].numpy(), 0)[16 * group : 16 * group + 16]
            best = np.abs(oracle.E2M1[None] * scale - part[:, None]).min(1)
            assert np.array_equal(np.abs(got - part), best), (token, group)


@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("descale", [None, 1.0, 0.25, 0.3])
def test_one_scale_for_the_tensor(d_qk: int, descale: float | None) -> None:
    scale = 1.0 if descale is None else float(np.float32(descale))
    codes = np.resize(CODES, (2, 3, 1, d_qk))
    k = torch.from_numpy(oracle.E4M3[codes] * scale).float()
    given = None if descale is None else torch.tensor([descale])
    cache = kv_format.quantize(k, "fp8", given)
    assert cache.shape == k.shape
    assert np.array_equal(cache.view(torch.uint8).numpy(), codes)
    reader = oracle.Cache(cache, "fp8", scale)
    back = kv_format.dequantize(cache, "fp8", torch.float64, given)
    assert torch.equal(back.view(6, d_qk), reader.keys(range(6), 0))
    other = torch.zeros_like(cache.view(torch.uint8)).view(torch.float8_e4m3fn)
    kv_format.append(other, k.view(6, d_qk), torch.arange(6), layout="fp8", descale_k=given)
    assert torch.equal(other.view(torch.uint8), cache.view(torch.uint8))


def test_values_past_the_largest_become_it() -> None:
    k = torch.tensor([500.0, -1e6, math.inf, math.nan, 448.0] + [0.0] * 507).view(1, 1, 1, 512)
    back = kv_format.dequantize(kv_format.quantize(k, "fp8"), "fp8")[0, 0, 0]
    assert back[:2].tolist() == [448.0, -448.0]
    assert back[2:4].isnan().all()
    assert back[4] == 448


def test_a_scale_for_the_tensor_is_refused_where_the_layout_has_its_own() -> None:
    k = torch.zeros(1, 2, 1, 512)
    for name in ("v41", "model1", "v32_no_rope", "v41_fp4"):
        with pytest.raises(InvalidRequestError, match=f"descale_k.*{name}"):
            kv_format.quantize(k, name, 1.0)
    with pytest.raises(InvalidRequestError, match="descale_k"):
        kv_format.quantize(k, "fp8", torch.ones(2))
    with pytest.raises(InvalidRequestError, match="descale_k"):
        kv_format.append(k, k[0, :, 0], torch.arange(2), descale_k=1.0)


def test_bytes_that_two_layouts_have_name_both() -> None:
    assert kv_format.named_by_width(528) == ("v32_no_rope", "v41")
    assert kv_format.named_by_width(512) == ("fp8",)
    assert kv_format.named_by_width(100) == ()

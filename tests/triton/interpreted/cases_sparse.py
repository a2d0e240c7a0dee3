"""Sparse decode and prefill under the interpreter, bf16 and FP8 caches."""

from __future__ import annotations

import pytest
from calls import dense_fp8, sparse_decode, sparse_prefill

from flashmla_hub.backends.triton.config import Config

LAYOUTS = ["dense", "v32", "model1"]
LATER = ["v32_no_rope", "v41", "fp8"]


@pytest.mark.parametrize("layout", [*LAYOUTS, *LATER])
def test_layouts(layout: str) -> None:
    sparse_decode(layout=layout, h_q=12, s_q=2, counts=[40, 7])


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_a_second_cache_of_e2m1(arch: str) -> None:
    sparse_decode(
        layout="v41+v41_fp4", arch=arch, extra=24, extra_counts=[24, 3], sink=True, h_q=8, topk=30
    )


@pytest.mark.parametrize("layout", ["v32", "model1"])
def test_e4m3_by_integer_operations(layout: str) -> None:
    sparse_decode(layout=layout, arch="sm_80", h_q=8, page=16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_cache_and_sink(layout: str) -> None:
    sparse_decode(
        layout=layout, extra=24, extra_counts=[24, 0], counts=[3, 0], sink=True, h_q=8, topk=70
    )


def test_one_split_and_many() -> None:
    sparse_decode(topk=200, parts=1, sink=True, h_q=4)
    sparse_decode(topk=200, parts=64, sink=True, batch=1, h_q=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_invariant_form(layout: str) -> None:
    sparse_decode(layout=layout, topk=200, invariant=True, h_q=4, batch=1)


@pytest.mark.parametrize("scale", [-0.05, 0.0])
def test_scales_that_are_not_positive(scale: float) -> None:
    sparse_decode(topk=20, batch=1, h_q=4, sink=True, scale=scale)


def test_no_valid_entry() -> None:
    sparse_decode(counts=[0, -4], sink=True, h_q=8)


@pytest.mark.parametrize("layout", ["dense", "v32"])
def test_64_rows(layout: str) -> None:
    config = Config(64, 32, 8, 2, break_chain=True, spread=True, hardware_fp8=True)
    sparse_decode(h_q=40, layout=layout, config=config, topk=50)


@pytest.mark.parametrize(("d", "d_v"), [(512, 512), (320, 256)])
def test_head_dims(d: int, d_v: int) -> None:
    sparse_decode(dims=(d, d_v), h_q=8, dtype="float16")


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("parts", [1, 16])
def test_prefill(parts: int, sink: bool) -> None:
    sparse_prefill(counts=[40, 0, 9], sink=sink, parts=parts, h_q=12)


def test_prefill_with_several_kv_heads() -> None:
    sparse_prefill(h_kv=2, h_q=8)


@pytest.mark.parametrize("descale", [1.0, 0.5, -0.25])
@pytest.mark.parametrize("d", [576, 512])
def test_one_scale_for_the_cache(d: int, descale: float) -> None:
    arch = "sm_80" if descale == 0.5 else "sm_90"
    dense_fp8([70, 0, 5], "fp8", s_q=2, causal=True, h_q=4, d=d, descale=descale, arch=arch)


@pytest.mark.parametrize("layout", ["v32", "model1", "v32_no_rope", "v41"])
def test_dense_decode_over_an_fp8_cache(layout: str) -> None:
    dense_fp8([70, 0, 5], layout, s_q=2, causal=True, h_q=4)
    dense_fp8([130], layout, page=16, parts=6, h_q=4)

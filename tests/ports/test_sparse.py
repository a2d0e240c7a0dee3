"""Sparse decode and prefill of the ports that have them, on their fakes."""

from __future__ import annotations

import pytest
import torch

import flashmla_hub
from flashmla_hub import kv_format
from flashmla_hub.errors import NotSupportedError
from tests import oracle

BAD = (-1, -7, 2**31 - 1)  # entries that must be ignored (contract C4.1)


def entries(g, shape, slots):
    """Random slots, duplicates included, with invalid entries sprinkled in."""
    indices = torch.randint(0, slots, shape, generator=g, dtype=torch.int32)
    where = torch.rand(shape, generator=g) < 0.3
    bad = torch.tensor(BAD, dtype=torch.int32)[torch.randint(0, 3, shape, generator=g)]
    return torch.where(where, bad, indices)


def bf16(g, *shape):
    return torch.randn(*shape, generator=g).to(torch.bfloat16)


@pytest.fixture
def metax(install, simulated_ports):
    install("metax_mc")
    with flashmla_hub.simulate_device("metax", "xcore1000"):
        yield "simulated_metax_sparse"


METAX_DECODE = (  # s_q, h_q, topk, lengths, page
    (1, 16, 64, False, 64),
    (1, 12, 50, True, 16),
    (2, 64, 50, True, 16),
    (2, 16, 64, True, 64),
    (1, 128, 64, True, 64),
)
METAX_PREFILL = ((64, 64, False), (12, 40, True))  # h_q, topk, lengths
FLAGGEMS = (  # s_q, extra, sink, lengths
    (1, False, False, False),
    (1, False, True, True),
    (1, True, False, False),
    (2, True, True, True),
)


@pytest.mark.parametrize(("s_q", "h_q", "topk", "lengths", "page"), METAX_DECODE)
def test_metax_sparse_decode(metax, s_q, h_q, topk, lengths, page):
    g = torch.Generator().manual_seed(s_q * 1000 + h_q)
    q, k_cache = bf16(g, 3, s_q, h_q, 576), bf16(g, 5, page, 1, 576)
    indices = entries(g, (3, s_q, topk), 5 * page)
    indices[1] = -1  # a row with no valid entry
    length = torch.tensor([topk, topk, 7], dtype=torch.int32) if lengths else None
    out, lse = flashmla_hub.flash_mla_with_kvcache(
        q, k_cache, None, None, 512, indices=indices, topk_length=length, backend=metax
    )
    expected = oracle.sparse_decode(
        q, k_cache, indices, d_v=512, softmax_scale=576**-0.5, topk_length=length
    )
    oracle.check(out, lse, expected, f"s_q={s_q} h_q={h_q} topk={topk}")


@pytest.mark.parametrize(("h_q", "topk", "lengths"), METAX_PREFILL)
def test_metax_sparse_prefill_comes_back_in_natural_units(metax, h_q, topk, lengths):
    g = torch.Generator().manual_seed(h_q)
    q, kv = bf16(g, 5, h_q, 576), bf16(g, 90, 1, 576)
    indices = entries(g, (5, 1, topk), 90)
    indices[2] = -1
    length = torch.tensor([topk, 3, 9, 0, topk], dtype=torch.int32) if lengths else None
    out, top, lse = flashmla_hub.flash_mla_sparse_fwd(
        q, kv, indices, 576**-0.5, topk_length=length, backend=metax
    )
    expected = oracle.sparse_prefill(
        q, kv, indices, d_v=512, softmax_scale=576**-0.5, topk_length=length
    )
    oracle.check(out.unsqueeze(1), lse.unsqueeze(-1), expected, f"h_q={h_q} topk={topk}")
    torch.testing.assert_close(top.double(), expected.max_logits.squeeze(-1), rtol=1e-4, atol=1e-5)


@pytest.fixture
def flaggems(install, simulated_ports):
    install("flag_gems_sparse")
    with flashmla_hub.simulate_device("nvidia", "sm_90"):
        yield "simulated_flaggems_sparse"


def model1(g, blocks, page):
    """A cache of ``blocks`` pages in the layout ``model1``."""
    pages = torch.randn(blocks, page, 1, 512, generator=g).to(torch.bfloat16)
    return kv_format.quantize(pages, "model1")


@pytest.mark.parametrize("page", [64, 2])
@pytest.mark.parametrize(("s_q", "extra", "sink", "lengths"), FLAGGEMS)
def test_flaggems_sparse_decode(flaggems, page, s_q, extra, sink, lengths):
    g = torch.Generator().manual_seed(page + s_q)
    h_q, topk = 8, 24
    q, cache = bf16(g, 3, s_q, h_q, 512), model1(g, 4, page)
    indices = entries(g, (3, s_q, topk), 4 * page)
    indices[1] = -1
    more = {}
    if lengths:
        more["topk_length"] = torch.tensor([topk, 5, 0], dtype=torch.int32)
    if extra:
        more["extra_k_cache"] = model1(g, 3, 16)
        more["extra_indices_in_kvcache"] = entries(g, (3, s_q, 8), 3 * 16)
        more["extra_indices_in_kvcache"][1] = -1
        more["extra_topk_length"] = torch.tensor([8, 2, 1], dtype=torch.int32)
    if sink:
        more["attn_sink"] = torch.randn(h_q, generator=g)
    out, lse = flashmla_hub.flash_mla_with_kvcache(
        q, cache, None, None, 512, indices=indices, is_fp8_kvcache=True, kv_format="model1",
        backend=flaggems, **more,
    )  # fmt: skip
    if extra:
        more["extra_indices"] = more.pop("extra_indices_in_kvcache")
    expected = oracle.sparse_decode(
        q, cache, indices, d_v=512, softmax_scale=512**-0.5, kv_format="model1", **more
    )
    oracle.check(out, lse, expected, f"page={page} s_q={s_q} extra={extra} sink={sink}")


def test_flaggems_refuses_a_cache_past_2_gib(flaggems):
    """Its kernel multiplies page and stride in 32 bits."""
    blocks = (1 << 31) // (64 * 584) + 1
    cache = torch.empty(blocks, 64, 1, 584, dtype=torch.uint8)  # never touched
    with pytest.raises(NotSupportedError, match="cache bytes"):
        flashmla_hub.flash_mla_with_kvcache(
            torch.zeros(1, 1, 8, 512, dtype=torch.bfloat16), cache, None, None, 512,
            indices=torch.zeros(1, 1, 8, dtype=torch.int32), is_fp8_kvcache=True,
            kv_format="model1", backend=flaggems,
        )  # fmt: skip

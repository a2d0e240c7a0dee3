"""vLLM's sparse layers and V4's functions through the hub, over a stub of vLLM 0.33."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import stub_vllm_sparse as stub
import torch

import flashmla_hub as hub
from flashmla_hub import config, kv_format
from flashmla_hub.engines.vllm import plugin

D_QK, D_V, TOPK, HEADS = 576, 512, 32, 12
SCALE = D_QK**-0.5
ASKED = {
    "head_size": D_QK,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "fp8_ds_mla",
    "block_size": 64,
    "use_mla": True,
    "has_sink": False,
    "use_sparse": True,
    "use_mm_prefix": False,
    "device_capability": None,
}


@pytest.fixture
def vllm() -> Iterator[dict[str, ModuleType]]:
    with stub.installed() as modules:
        yield modules


@pytest.fixture
def sparse(vllm: dict[str, ModuleType]) -> ModuleType:
    return importlib.import_module("flashmla_hub.engines.vllm.sparse")


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, D_QK, generator=torch.Generator().manual_seed(seed)).bfloat16()


def lists(*shape: int, slots: int) -> torch.Tensor:
    got = torch.randint(0, slots, shape, generator=torch.Generator().manual_seed(1)).int()
    got[..., ::5] = -1
    return got


def attention(
    q: torch.Tensor, k: torch.Tensor, picked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64, one query: q (h, 576), k (slots, 576), picked (topk,)."""
    keys = k.double()[picked[picked >= 0].long()]
    logits = q.double() @ keys.T * SCALE
    return logits.softmax(-1) @ keys[:, :D_V], logits.logsumexp(-1)


# --- registration ---


@pytest.mark.parametrize("opt_in", [True, False])
def test_the_sparse_backend_is_opt_in(vllm: dict[str, ModuleType], opt_in: bool) -> None:
    with config.override(engines=frozenset({"vllm-sparse"} if opt_in else ())):
        plugin.register()
    found = vllm["vllm.v1.attention.backends.registry"].AttentionBackendEnum.FLASHMLA_SPARSE
    assert (found.get_path() == plugin.SPARSE_BACKEND) is opt_in


def test_the_name_stays(sparse: ModuleType) -> None:
    """vLLM derives the cache dtype of sparse layers from it."""
    assert sparse.HubSparseMLABackend.get_name() == "FLASHMLA_SPARSE"
    assert sparse.HubSparseMLABackend.get_impl_cls() is sparse.HubSparseMLAImpl


def test_an_older_vllm_is_told(
    vllm: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.32.0")
    with config.override(engines=frozenset({"vllm-sparse"})):
        plugin.register()
    found = vllm["vllm.v1.attention.backends.registry"].AttentionBackendEnum.FLASHMLA_SPARSE
    assert found.get_path() != plugin.SPARSE_BACKEND
    assert "vLLM 0.33 or later" in caplog.text


def test_functions_of_an_older_vllm(
    vllm: dict[str, ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    del vllm[stub.FUNCTIONS].flash_mla_sparse_fwd
    with config.override(engines=frozenset({"vllm-functions"})):
        plugin.register()
    assert "0.33 or later" in caplog.text


# --- what vLLM is told ---


@pytest.mark.parametrize("dtype", ["fp8_ds_mla", "fp8", "fp8_e4m3", "auto", "bfloat16", None])
def test_what_the_hub_takes_has_no_reason(sparse: ModuleType, dtype: str | None) -> None:
    backend = sparse.HubSparseMLABackend
    assert backend.supports_combination(**ASKED | {"kv_cache_dtype": dtype}) is None
    assert backend.supports_compute_capability(None)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"use_sparse": False}, "sparse layers only"),
        ({"has_sink": True}, "no sink"),
        ({"kv_cache_dtype": "nvfp4_ds_mla"}, "kv_cache_dtype nvfp4_ds_mla"),
        ({"head_size": 96}, "takes 576 | 512"),
        ({"head_size": 96, "kv_cache_dtype": "auto"}, "no backend takes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rest_is_refused(sparse: ModuleType, changed: dict[str, Any], expected: str) -> None:
    assert expected in sparse.HubSparseMLABackend.supports_combination(**ASKED | changed)


# --- the two kernels ---


@pytest.mark.parametrize(("batch", "s_q"), [(3, 2), (1, 7)], ids=["decode", "mixed batch"])
def test_quantised_records(sparse: ModuleType, batch: int, s_q: int) -> None:
    """7 queries of one "request": how vLLM sends a mixed batch."""
    impl = sparse.HubSparseMLAImpl(HEADS, SCALE)
    assert impl.fp8_decode_padded_heads == HEADS
    pages, page = 4, 64
    records = kv_format.quantize(rows(pages * page).view(pages, page, 1, D_QK), "v32")
    q = rows(batch * s_q * HEADS, 2).view(batch, s_q, HEADS, D_QK)
    topk = lists(batch, s_q, TOPK, slots=pages * page)
    topk[-1, -1] = -1
    out, lse = impl._fp8_flash_mla_kernel(
        q=q, kv_c_and_k_pe_cache=records.squeeze(2), topk_indices=topk, kernel_metadata=None
    )
    assert out.shape == (batch, s_q, HEADS, D_V) and lse.shape == (batch, HEADS, s_q)
    k = kv_format.dequantize(records, "v32").view(-1, D_QK)
    for row in range(batch):
        for t in range(s_q):
            if (row, t) == (batch - 1, s_q - 1):
                assert (out[row, t] == 0).all() and (lse[row, :, t] == torch.inf).all()
                continue
            want, want_lse = attention(q[row, t], k, topk[row, t])
            torch.testing.assert_close(out[row, t].double(), want, rtol=2e-2, atol=2e-3)
            torch.testing.assert_close(lse[row, :, t].double(), want_lse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_unquantised_rows(sparse: ModuleType, padded: bool) -> None:
    """vLLM's q and out are 64 heads wide; the 12 that count are a strided view of each."""
    impl = sparse.HubSparseMLAImpl(HEADS, SCALE)
    tokens, cache, wide = 5, rows(256), 64 if padded else HEADS
    q = torch.full((tokens, wide, D_QK), float("nan")).bfloat16()
    q[:, :HEADS] = rows(tokens * HEADS, 2).view(tokens, HEADS, D_QK)
    topk = lists(tokens, TOPK, slots=256)
    length = torch.tensor([TOPK, 1, 17, TOPK, 30], dtype=torch.int32)
    out = torch.full((tokens, wide, D_V), -7.0).bfloat16() if padded else None
    given = {"actual_num_heads": HEADS, "out": out} if padded else {}
    got, lse = impl._bf16_flash_mla_kernel(q, cache.view(4, 64, D_QK), topk, length, **given)
    assert got.shape == (tokens, HEADS, D_V) and lse.shape == (tokens, HEADS)
    if out is not None:
        assert (out[:, HEADS:] == -7).all()
        assert torch.equal(out[:, :HEADS], got)
    for t in range(tokens):
        picked = topk[t, : length[t]]
        if (picked < 0).all():
            assert (got[t] == 0).all()
            continue
        want, want_lse = attention(q[t, :HEADS], cache, picked)
        torch.testing.assert_close(got[t].double(), want, rtol=2e-2, atol=2e-3)
        torch.testing.assert_close(lse[t].double(), want_lse, rtol=1e-3, atol=1e-4)


# --- V4's functions ---


def v4_call(batch: int = 3) -> dict[str, Any]:
    """As DeepseekV4FlashMLAAttention decodes: two caches, sinks, ``out`` a slice of heads."""
    pages = [torch.randn(4, size, 1, 512).bfloat16() for size in (64, 2)]
    window, entries = (kv_format.quantize(p, "model1") for p in pages)
    return {
        "q": torch.randn(batch, 1, 8, 512).bfloat16(),
        "k_cache": window,
        "block_table": None,
        "head_dim_v": 512,
        "tile_scheduler_metadata": stub.FlashMLASchedMeta(),
        "cache_seqlens": None,
        "is_fp8_kvcache": True,
        "indices": lists(batch, 1, 16, slots=256),
        "topk_length": torch.tensor([16, 3, 9], dtype=torch.int32)[:batch],
        "softmax_scale": 512**-0.5,
        "attn_sink": torch.randn(8),
        "extra_k_cache": entries,
        "extra_indices_in_kvcache": lists(batch, 1, 16, slots=8),
        "extra_topk_length": torch.tensor([2, 16, 0], dtype=torch.int32)[:batch],
        "out": torch.zeros(batch, 64, 512).bfloat16()[:, :8].unsqueeze(1),
    }


def test_functions_are_replaced_where_they_are_bound(vllm: dict[str, ModuleType]) -> None:
    with config.override(engines=frozenset({"vllm-functions"})):
        plugin.register()
        plugin.register()
    functions = importlib.import_module("flashmla_hub.engines.vllm.functions")
    layer = vllm[stub.V4_LAYER]
    call = v4_call()
    layer.flash_mla_with_kvcache(**call)
    want, _ = hub.flash_mla_with_kvcache(
        **{**call, "tile_scheduler_metadata": None, "out": torch.empty_like(call["out"])}
    )
    assert torch.equal(call["out"], want) and want.abs().sum() > 0
    assert layer.flash_mla_with_kvcache is vllm[stub.FUNCTIONS].flash_mla_with_kvcache
    q, kv, at = torch.randn(4, 8, 512), torch.randn(64, 1, 512), lists(4, 1, 16, slots=64)
    got = layer.flash_mla_sparse_fwd(q=q, kv=kv, indices=at, sm_scale=0.1)
    assert torch.equal(got[0], hub.flash_mla_sparse_fwd(q, kv, at, 0.1)[0])
    functions.uninstall()
    assert layer.flash_mla_with_kvcache is stub.flash_mla_with_kvcache
    assert vllm[stub.FUNCTIONS].flash_mla_sparse_fwd is stub.flash_mla_sparse_fwd


def test_what_the_hub_refuses_goes_to_vllm(
    vllm: dict[str, ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    functions = importlib.import_module("flashmla_hub.engines.vllm.functions")
    changed = functions.install(vllm[stub.FUNCTIONS])
    assert len(changed) == 4 and functions.install(vllm[stub.FUNCTIONS]) == ()
    call = v4_call() | {"indexer_topk": 7}
    for _ in range(2):
        served, _, kwargs = vllm[stub.V4_LAYER].flash_mla_with_kvcache(**call)
        assert served == "vllm's own"
        assert kwargs["tile_scheduler_metadata"] is call["tile_scheduler_metadata"]
    assert caplog.text.count("vLLM's own flash_mla_with_kvcache serves a call") == 1

"""The SGLang plug-in over a stub of SGLang: opt-in, hooks, metadata as tensors, what passes by."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import stub_sglang as stub
import torch

import flashmla_hub as hub
from flashmla_hub import config
from flashmla_hub.engines.sglang import plugin

PAGE, SCALE = 64, 576**-0.5


REGISTRIES = ["stub", "sglang"] if stub.real_registry() else ["stub"]


@pytest.fixture(params=REGISTRIES)
def original(request: pytest.FixtureRequest) -> Iterator[stub.Original]:
    """Over the stub's registry, and over SGLang's own where it is installed."""
    with stub.installed(real=request.param == "sglang") as original:
        yield original


@pytest.fixture
def interface(original: stub.Original) -> Iterator[ModuleType]:
    """SGLang's module with the hub's hooks applied."""
    with config.override(engines=frozenset({"sglang"})):
        plugin.register()
        registry().apply_hooks()
        yield importlib.import_module(stub.INTERFACE)


def registry() -> Any:
    return importlib.import_module(stub.REGISTRY).HookRegistry


def call(interface: ModuleType, s_q: int = 1, dtype: str = "bfloat16", **kwargs: Any) -> Any:
    """A call as SGLang's FlashMLA backend makes it; also its inputs."""
    g = torch.Generator().manual_seed(11)
    lens = torch.tensor([70, 5, 130], dtype=torch.int32)
    table = torch.tensor([[3, 5, 0], [1, 0, 0], [7, 2, 4]], dtype=torch.int32)
    pool = torch.randn(8 * PAGE, 1, 2, 576, generator=g).to(getattr(torch, dtype))
    cache = pool[:, :, 0].view(8, PAGE, 1, 576)  # one layer of a larger pool: strided tokens
    q = torch.randn(3, s_q, 16, 576, generator=g).to(getattr(torch, dtype))
    meta, splits = interface.get_mla_metadata(lens, s_q * 16, 1, is_fp8_kvcache=False)
    state = interface.flash_mla_with_kvcache(
        q=q, k_cache=cache, block_table=table, cache_seqlens=lens, head_dim_v=512,
        tile_scheduler_metadata=kwargs.pop("metadata", meta), num_splits=splits,
        softmax_scale=SCALE, causal=True, **kwargs,
    )  # fmt: skip
    return state, (q, cache, table, lens)


def test_nothing_is_registered_without_the_opt_in(original: stub.Original) -> None:
    plugin.register()
    assert not registry()._hooks
    status = plugin.check()
    assert not status
    assert "FLASHMLA_HUB_ENGINES=sglang" in status.reasons[-1]


def test_silent_where_sglang_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    with config.override(engines=frozenset({"sglang"})):
        plugin.register()
        status = plugin.check()
    assert not status.in_force
    assert "cannot be imported" in status.reasons[0]


def test_registering_twice_hooks_once(interface: ModuleType) -> None:
    plugin.register()
    assert {len(hooks) for hooks in registry()._hooks.values()} == {1}


def test_check_sees_the_hooks_in_force(interface: ModuleType) -> None:
    assert plugin.check() == plugin.HookStatus(True)


def test_check_sees_hooks_that_failed_to_apply(original: stub.Original) -> None:
    with config.override(engines=frozenset({"sglang"})):
        plugin.register()  # SGLang only logs when applying fails
        status = plugin.check()
    assert not status.in_force
    assert [reason.split(":")[0] for reason in status.reasons] == [
        "get_mla_metadata",
        "flash_mla_with_kvcache",
    ]


def test_stale_imports_are_replaced(original: stub.Original) -> None:
    user = ModuleType("sglang.user")
    interface = sys.modules[stub.INTERFACE]
    user.flash_mla_with_kvcache = interface.flash_mla_with_kvcache
    sys.modules["sglang.user"] = user
    with config.override(engines=frozenset({"sglang"})):
        plugin.register()
        registry().apply_hooks()
    assert user.flash_mla_with_kvcache is interface.flash_mla_with_kvcache


@pytest.mark.parametrize("first", [True, False])
def test_another_plugin_on_the_same_function_is_no_loop(
    original: stub.Original, first: bool
) -> None:
    seen = []

    def theirs(wrapped: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(args) + len(kwargs))
        return wrapped(*args, **kwargs)

    target = f"{stub.INTERFACE}.flash_mla_with_kvcache"
    around = importlib.import_module(stub.REGISTRY).HookType.AROUND
    with config.override(engines=frozenset({"sglang"})):
        if first:
            registry().register(target, theirs, around)
        plugin.register()
        if not first:
            registry().register(target, theirs, around)
        registry().apply_hooks()
        interface = sys.modules[stub.INTERFACE]
        assert plugin.check()
        state, _ = call(interface, attn_sink=torch.zeros(16))
    assert state == ("original out", "original lse")
    assert len(original.calls) == 1
    assert len(seen) == 1


def test_metadata_is_two_int32_tensors_that_survive_a_copy(interface: ModuleType) -> None:
    lens = torch.tensor([70, 5, 130], dtype=torch.int32)
    meta, splits = interface.get_mla_metadata(lens, 16, 1, is_fp8_kvcache=False)
    assert (meta.dtype, splits.dtype) == (torch.int32, torch.int32)
    assert meta.dim() == 2
    assert meta.shape[1] == 8
    assert splits.shape == (4,)
    fixed = torch.full_like(meta, 7)
    fixed.copy_(meta)
    state, _ = call(interface, metadata=fixed)
    assert isinstance(state[0], torch.Tensor)


@pytest.mark.parametrize("s_q", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dense_calls_reach_the_hub(
    interface: ModuleType, original: stub.Original, s_q: int, dtype: str
) -> None:
    (out, lse), (q, cache, table, lens) = call(interface, s_q, dtype)
    assert not original.calls
    assert out.shape == (3, s_q, 16, 512)
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
    for b in range(3):
        for t in range(s_q):
            n = int(lens[b]) - s_q + t + 1
            keys = cache[table[b].long()].reshape(-1, 576)[:n].double()
            logits = q[b, t].double() @ keys.T * SCALE
            want = torch.softmax(logits, -1) @ keys[:, :512]
            torch.testing.assert_close(out[b, t].double(), want, atol=tolerance, rtol=tolerance)
            want_lse = torch.logsumexp(logits, -1)
            torch.testing.assert_close(lse[b, :, t].double(), want_lse, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "extra",
    [
        {"attn_sink": torch.zeros(16)},
        {"indices": torch.zeros(3, 1, 64, dtype=torch.int32)},
        {"is_fp8_kvcache": True},
        {"kv_format": "V32_NO_ROPE"},
        {"descale_q": torch.ones(1), "descale_k": torch.ones(1), "use_legacy": False},
        {"metadata": "a FlashMLASchedMeta"},
    ],
    ids=lambda extra: "+".join(extra),
)
def test_what_is_not_dense_passes_to_the_original_unchanged(
    interface: ModuleType, original: stub.Original, extra: dict[str, Any]
) -> None:
    given = {k: v for k, v in extra.items() if k != "metadata"}
    state, _ = call(interface, **extra)
    assert state == ("original out", "original lse")
    args, kwargs = original.calls[0]
    assert kwargs == given
    assert len(args) == 9


def test_fp8_queries_pass_to_the_original(interface: ModuleType, original: stub.Original) -> None:
    state, _ = call(interface, dtype="float8_e4m3fn")
    assert state == ("original out", "original lse")


def test_use_legacy_alone_does_not_divert_a_dense_call(
    interface: ModuleType, original: stub.Original
) -> None:
    call(interface, use_legacy=True)
    assert not original.calls


@pytest.mark.parametrize("form", ["none", "fp8", "topk"])
def test_other_metadata_comes_from_the_original(
    interface: ModuleType, original: stub.Original, form: str
) -> None:
    lens = torch.tensor([5], dtype=torch.int32)
    args = {
        "none": (),
        "fp8": (lens, 16, 1, 16, True),
        "topk": (lens, 16, 1, 16, False, 2048),
    }[form]
    assert interface.get_mla_metadata(*args) == ("original metadata", None)
    assert len(original.metadata) == 1


def test_the_hub_is_called_by_its_public_name(
    interface: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "flash_mla_with_kvcache", lambda *a, **k: ("hub", k["causal"]))
    assert call(interface)[0] == ("hub", True)

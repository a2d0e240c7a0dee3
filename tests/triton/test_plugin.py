"""The declaration: what is taken where, what is missing, and that looking imports no triton."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import flashmla_hub
from flashmla_hub.backends.triton import plugin
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

WITHOUT_A_NATIVE = ["nvidia:sm_80", "nvidia:sm_89", "nvidia:sm_120", "amd:gfx90a"]
H100 = DeviceInfo("nvidia", "sm_90", "cuda", simulated=True)


def test_importing_and_asking_imports_no_triton() -> None:
    code = (
        "import sys, flashmla_hub; from flashmla_hub import KernelKey\n"
        "flashmla_hub.backends(); flashmla_hub.explain(KernelKey(), device='nvidia:sm_80')\n"
        "assert 'triton' not in sys.modules, 'triton was imported'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("device", WITHOUT_A_NATIVE)
def test_chosen_where_no_native_exists(device: str) -> None:
    assert flashmla_hub.explain(KernelKey(h_q=16), device=device).selected == "triton"


def test_loses_to_the_native_on_hopper_by_rank() -> None:
    decision = flashmla_hub.explain(KernelKey(), device="nvidia:sm_90")
    found = {c.backend: c for c in decision.candidates}
    assert decision.selected == "hopper"
    assert found["triton"].accepted
    assert found["triton"].rank < found["hopper"].rank


@pytest.mark.parametrize(
    "change",
    [
        {"d_qk": 512}, {"d_qk": 320, "d_v": 256}, {"dtype": "float16"}, {"page_block_size": 1},
        {"h_kv": 2}, {"h_q": 12}, {"s_q": 4, "causal": True}, {"batch_invariant": True},
        {"kv_format": "v32"}, {"kv_format": "model1", "d_qk": 512},
        {"op": "sparse_decode", "topk": 2048}, {"op": "sparse_prefill", "topk": 2048},
    ],
    ids=str,
)  # fmt: skip
def test_takes_the_contract(change: dict) -> None:
    key = KernelKey(**{"h_q": 16, **change})
    assert flashmla_hub.explain(key, device="nvidia:sm_80").selected == "triton"


def test_refuses_by_itself_what_it_does_not_claim() -> None:
    with pytest.raises(NotSupportedError, match="float32"):
        plugin.TritonBackend().bind(KernelKey(dtype="float32"), H100)


def test_an_old_triton_is_refused_naming_the_torch_that_brings_a_new_one(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    (reason,) = plugin.TritonBackend().environment_reasons(H100)
    assert "Triton 3.5.1" in reason
    assert "torch >= 2.10" in reason


def test_a_missing_triton_and_compiler_are_named_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(plugin.shutil, "which", lambda name: None)
    assert any("install gcc" in r for r in plugin.TritonBackend().environment_reasons(H100))
    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: None)
    (reason,) = plugin.TritonBackend().environment_reasons(H100)
    assert "pip install" in reason


def test_vendors_it_was_not_made_for_rank_it_as_a_fallback() -> None:
    backend, choice = plugin.TritonBackend(), flashmla_hub.ChoiceKey(KernelKey())
    assert backend.rank(choice, H100) == 50
    assert backend.rank(choice, DeviceInfo("metax", "", "cuda", simulated=True)) == 25

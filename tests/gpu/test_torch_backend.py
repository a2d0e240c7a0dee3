"""The torch backend on an accelerator: right, without waiting for the device, and in a graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "torch_ref"))

from torch_calls import (
    expect_dense,
    expect_prefill,
    expect_sparse,
    run_dense,
    run_prefill,
    run_sparse,
)
from torch_cases import (
    Case,
    dense_inputs,
    prefill_inputs,
    random_dense,
    random_prefill,
    random_sparse,
    sparse_inputs,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


def _on_device(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same tensors there, strides included."""
    return {name: None if t is None else _moved(t) for name, t in inputs.items()}


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    raw = tensor if tensor.element_size() > 1 else tensor.view(torch.uint8)
    there = torch.empty_strided(raw.shape, raw.stride(), dtype=raw.dtype, device="cuda")
    return there.copy_(raw).view(tensor.dtype)


@pytest.fixture
def no_waiting() -> Any:
    """A synchronising call raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("seed", range(20))
def test_random_calls(seed: int) -> None:
    case = random_dense(seed)
    inputs = dense_inputs(case)
    oracle.check(*run_dense(case, _on_device(inputs)), expect_dense(case, inputs), case)
    case = random_sparse(seed)
    inputs = sparse_inputs(case)
    oracle.check(*run_sparse(case, _on_device(inputs)), expect_sparse(case, inputs), case)
    case = random_prefill(seed)
    inputs = prefill_inputs(case)
    out, _, lse = run_prefill(case, _on_device(inputs))
    expected = expect_prefill(case, inputs)
    oracle.check(out.unsqueeze(1), lse.unsqueeze(-1), expected, case)


@pytest.mark.parametrize("kv_format", ["dense", "v32"])
def test_never_waits(no_waiting: None, kv_format: str) -> None:
    case = Case(1, lens=(300, 0, 64), s_q=2, causal=True, kv_format=kv_format)
    torch.cuda.set_sync_debug_mode("default")
    inputs = _on_device(dense_inputs(case))
    sparse_case = Case(2, lens=(0, 0), topk=128, topk_length=True, kv_format=kv_format)
    sparse = _on_device(sparse_inputs(sparse_case))
    torch.cuda.set_sync_debug_mode("error")
    run_dense(case, inputs)
    run_sparse(sparse_case, sparse)


def test_replays_follow_lengths_and_tables() -> None:
    """Rows go to length 0, as graph padding does, and back."""
    case = Case(3, lens=(300, 129, 64), s_q=2, causal=True)
    host = dense_inputs(case)
    inputs = _on_device(host)
    run_dense(case, inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = run_dense(case, inputs)
    for lens in ((300, 129, 64), (0, 128, 1), (0, 0, 0), (17, 129, 64)):
        host["cache_seqlens"] = torch.tensor(lens, dtype=torch.int32)
        inputs["cache_seqlens"].copy_(host["cache_seqlens"])
        graph.replay()
        oracle.check(out, lse, expect_dense(case, host), (case, lens))

"""The vLLM builder and impl on the card, over the recorded stub of vLLM 0.32, inside CUDA graphs.

This proves our glue with our kernels; .ci/engines proves it inside vLLM itself, on CPU.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_cases import Case, make, oracle
from oracle import check
from torch import Tensor

import flashmla_hub as hub
from flashmla_hub import parallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
import stub_vllm as stub

pytestmark = pytest.mark.gpu
D_QK, D_V = 576, 512


@pytest.fixture(params=["hopper", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The plug-in's module, with the named backend chosen."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    status = {s.name: s for s in hub.backends()}.get(request.param)
    if status is None or status.status != "ready":
        pytest.skip(f"{request.param}: {status.reason if status else 'not registered'}")
    with stub.installed(), hub.use_backend(request.param):
        yield importlib.import_module("flashmla_hub.engines.vllm.backend")


def make_impl(backend: ModuleType, heads: int) -> Any:
    mla = dict.fromkeys(
        ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "kv_b_proj")
    )
    impl = backend.HubMLAImpl(
        heads, D_QK, D_QK**-0.5, 1, None, None, "auto", None, "decoder", None,
        kv_lora_rank=D_V, v_head_dim=128, **mla,
    )  # fmt: skip
    impl.need_to_return_lse_for_decode = True  # to check it too
    return impl


def build(backend: ModuleType, t: SimpleNamespace, dcp: int = 1, rank: int = 0) -> tuple[Any, Any]:
    """Impl and the step's metadata, as vLLM makes them for a uniform decode batch."""
    case, batch = t.case, len(t.lengths)
    settings = stub.vllm_config(case.h_q, dcp)
    stub.set_current_vllm_config(settings)
    builder = backend.HubMetadataBuilder(None, ["layer"], settings, torch.device("cuda"))
    impl = make_impl(backend, case.h_q)
    impl.dcp_rank = rank
    start = torch.arange(0, (batch + 1) * case.s_q, case.s_q, dtype=torch.int32)
    common = SimpleNamespace(
        num_reqs=batch,
        max_query_len=case.s_q,
        max_seq_len=int(t.lengths.max()),
        num_actual_tokens=batch * case.s_q,
        query_start_loc=start.cuda(),
        query_start_loc_cpu=start,
        slot_mapping=torch.zeros(batch * case.s_q, dtype=torch.int64, device="cuda"),
        block_table_tensor=t.table,
        seq_lens=t.lengths,
        dcp_local_seq_lens=None if dcp == 1 else parallel.local_seq_lens(t.lengths, dcp, rank),
    )
    return impl, builder.build(0, common)


def run(impl: Any, metadata: Any, t: SimpleNamespace, cache: Tensor) -> tuple[Tensor, Tensor]:
    """vLLM's call, its answer back in the hub's shapes."""
    case, batch = t.case, len(t.lengths)
    q = t.q.reshape(batch * case.s_q, case.h_q, D_QK)
    out, lse = impl.forward_mqa((q[..., :D_V], q[..., D_V:]), cache[:, :, 0], metadata, None)
    out = out.view(batch, case.s_q, case.h_q, D_V)
    return out, lse.view(batch, case.s_q, case.h_q).transpose(1, 2)


@pytest.mark.parametrize("s_q", [1, 2, 4])
@pytest.mark.parametrize("heads", [16, 128])
def test_a_step_under_capture(backend: ModuleType, s_q: int, heads: int) -> None:
    """Two layers share the step's metadata; replays see lengths changed in place, padding to 0
    included."""
    # a seed without an lse next to 0, where the bound of C1.12 is absolute and nearly 0 itself
    case = Case((70, 5, 130, 1000, 64), s_q=s_q, h_q=heads, family="peaked", seed=10 + s_q)
    t = make(case)
    impl, metadata = build(backend, t)
    spec = SimpleNamespace(head_size=D_QK, block_size=case.page)
    level = backend.HubMetadataBuilder.get_cudagraph_support(stub.vllm_config(heads), spec)
    run(impl, metadata, t, t.cache)  # vLLM runs each batch size once before it captures
    if level is stub.AttentionCGSupport.NEVER:
        pytest.skip("the backend claims no CUDA graphs, and the builder says NEVER to vLLM")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers = [run(impl, metadata, t, t.cache) for _ in range(2)]
    original = t.lengths.clone()
    for lengths in (original, original // 2, original * 0, original):
        t.lengths.copy_(lengths)
        graph.replay()
        for out, lse in layers:
            check(out, lse, oracle(t), f"{case} lengths {lengths.tolist()}")


@pytest.mark.parametrize("s_q", [1, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_shards_of_one_cache_merge_to_the_whole(backend: ModuleType, world: int, s_q: int) -> None:
    """Every rank's step on this one card; lopsided and empty shards among them."""
    case = Case((1, 2, 65, 130, 1000), s_q=s_q, h_q=16, family="peaked", seed=world)
    t = make(case)
    expected = oracle(t)
    outs, lses = [], []
    for rank in range(world):
        width = -(-t.table.shape[1] // world)
        table = torch.arange(len(t.lengths) * width, dtype=torch.int32, device="cuda")
        table = table.view(-1, width)
        cache = torch.full(
            (table.numel(), case.page, 1, D_QK), torch.nan, dtype=case.dtype, device="cuda"
        )
        for row, n in enumerate(case.lengths):
            ids = t.table[row, : -(-n // case.page)].long()
            keys = t.cache[ids].reshape(-1, D_QK)[:n]
            positions = torch.arange(n, device="cuda")
            slots = parallel.local_slots(positions, table[row], world, rank, case.page)
            cache.view(-1, D_QK)[slots[slots >= 0]] = keys[slots >= 0]
        shard = SimpleNamespace(**{**vars(t), "table": table})
        impl, metadata = build(backend, shard, world, rank)
        out, lse = run(impl, metadata, shard, cache)
        outs.append(out.clone())
        lses.append(lse.contiguous())
    out, lse = hub.merge_states(outs, lses)
    check(out, lse, expected, f"{case} over {world} ranks")

"""The vLLM plug-in over a stub of vLLM 0.32: registration, reasons, metadata, the decode call."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import stub_vllm as stub
import torch

import flashmla_hub as hub
from flashmla_hub import config, parallel
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.capabilities import Capabilities, one_of
from flashmla_hub.engines.vllm import plugin
from flashmla_hub.testing import registered

PAGE, HEADS, D_QK, D_V = 16, 4, 576, 512
SCALE = D_QK**-0.5


@pytest.fixture
def vllm() -> Iterator[dict[str, ModuleType]]:
    with stub.installed() as modules:
        yield modules


@pytest.fixture
def backend(vllm: dict[str, ModuleType]) -> ModuleType:
    return importlib.import_module("flashmla_hub.engines.vllm.backend")


def enum_of(modules: dict[str, ModuleType]) -> Any:
    return modules[stub.REGISTRY].AttentionBackendEnum


class Narrow(Backend):
    """A backend whose declaration the engine's questions must follow."""

    name = "narrow"
    info = BackendInfo(summary="a test's backend")

    def __init__(self, **declared: Any) -> None:
        self.declared = declared

    def capabilities(self, device: Any) -> tuple[Capabilities, ...]:
        return (Capabilities(**self.declared),)

    def rank(self, choice: Any, device: Any) -> int:
        return 95

    def bind(self, key: Any, device: Any) -> BoundKernel:
        return BoundKernel()


# --- registration ---


def test_a_new_name_is_registered_once(vllm: dict[str, ModuleType]) -> None:
    plugin.register()
    plugin.register()
    assert enum_of(vllm).FLASHMLA_HUB.get_path() == plugin.BACKEND
    assert enum_of(vllm).CPU_MLA.get_path().startswith("vllm.")


def test_before_0_32_the_name_is_custom() -> None:
    with stub.installed(new_names=False) as modules:
        plugin.register()
        plugin.register()
        assert enum_of(modules).CUSTOM.get_path() == plugin.BACKEND
        assert "FLASHMLA_HUB" not in enum_of(modules).__members__


def test_the_cpu_form_is_opt_in(vllm: dict[str, ModuleType]) -> None:
    with config.override(engines=frozenset({"vllm-cpu"})):
        plugin.register()
    assert enum_of(vllm).CPU_MLA.get_path() == plugin.CPU_BACKEND


def test_silent_where_vllm_is_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    plugin.register()
    assert not caplog.records


def test_class_paths_name_what_is_there(vllm: dict[str, ModuleType]) -> None:
    for path in (plugin.BACKEND, plugin.CPU_BACKEND):
        module, name = path.rsplit(".", 1)
        assert issubclass(getattr(importlib.import_module(module), name), stub.MLACommonBackend)


def test_registering_imports_no_adapter_and_no_kernel(vllm: dict[str, ModuleType]) -> None:
    plugin.register()
    assert "flashmla_hub.engines.vllm.common" not in sys.modules


# --- what vLLM is told ---

ASKED = {
    "head_size": 576,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "block_size": 64,
    "use_mla": True,
    "has_sink": False,
    "use_sparse": False,
    "use_mm_prefix": False,
    "device_capability": None,
}


def reasons(backend: ModuleType, **changed: Any) -> list[str]:
    return backend.HubMLABackend.validate_configuration(**{**ASKED, **changed})


def test_a_request_the_hub_takes_has_no_reasons(backend: ModuleType) -> None:
    assert reasons(backend) == []
    assert reasons(backend, use_dcp=True) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"use_sparse": True}, "dense MLA decode only"),
        ({"has_sink": True}, "dense MLA decode only"),
        ({"dtype": torch.float32}, "dtype not supported"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype not supported"),
        ({"head_size": 128}, "head_size not supported"),
        ({"use_pcp": True}, "PCP not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_what_the_plug_in_does_not_do_is_refused(
    backend: ModuleType, changed: dict[str, Any], expected: str
) -> None:
    assert expected in " / ".join(reasons(backend, **changed))


def test_vllm_prints_the_hubs_own_reasons(backend: ModuleType) -> None:
    with registered(Narrow(h_q=one_of(128))), hub.use_backend("narrow"):
        stub.set_current_vllm_config(stub.vllm_config(heads=16))
        (reason,) = (r for r in reasons(backend) if r.startswith("flashmla_hub:"))
        assert "narrow: h_q=16: takes 128" in reason
        stub.set_current_vllm_config(stub.vllm_config(heads=16, dcp=8))  # DCP gathers the heads
        assert not any("h_q" in r for r in reasons(backend))


def test_sizes_follow_the_declaration(backend: ModuleType) -> None:
    declared = {"head_dims": ((576, 512), (320, 256)), "page_block_size": one_of(32, 64)}
    with registered(Narrow(**declared)), hub.use_backend("narrow"):
        assert set(backend.HubMLABackend.get_supported_head_sizes()) == {576, 320}
        assert set(backend.HubMLABackend.get_supported_kernel_block_sizes()) == {32, 64}


def test_the_preferred_block_size_is_the_best_backends(backend: ModuleType) -> None:
    with registered(Narrow(page_block_size=one_of(128), h_q=one_of(16))):
        assert 16 in backend.HubMLABackend.get_supported_kernel_block_sizes()  # the torch backend
        assert backend.HubMLABackend.get_preferred_block_size(16) == 128
    assert backend.HubMLABackend.get_preferred_block_size(16) == 64


@pytest.mark.parametrize("claimed", [True, False])
def test_batch_invariance_is_what_the_backend_claims(backend: ModuleType, claimed: bool) -> None:
    with registered(Narrow(batch_invariant=claimed)), hub.use_backend("narrow"):
        assert backend.HubMLABackend.supports_batch_invariance() is claimed


@pytest.mark.parametrize("claimed", [True, False])
def test_graph_support_is_what_the_backend_claims(backend: ModuleType, claimed: bool) -> None:
    spec = SimpleNamespace(head_size=576, block_size=128)  # two pages of 64 to vLLM's block
    with registered(Narrow(cuda_graph=claimed)), hub.use_backend("narrow"):
        level = backend.HubMetadataBuilder.get_cudagraph_support(stub.vllm_config(), spec)
    expected = "UNIFORM_BATCH" if claimed else "NEVER"
    assert level.name == expected


# --- one decode step ---


def common_metadata(
    lens: list[int], queries: list[int], dcp: int = 1, rank: int = 0
) -> SimpleNamespace:
    start = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    seq_lens = torch.tensor(lens, dtype=torch.int32)
    return SimpleNamespace(
        num_reqs=len(lens),
        max_query_len=max(queries),
        max_seq_len=max(lens),
        num_actual_tokens=sum(queries),
        query_start_loc=start,
        query_start_loc_cpu=start,
        slot_mapping=torch.zeros(sum(queries), dtype=torch.int64),
        block_table_tensor=None,
        seq_lens=seq_lens,
        dcp_local_seq_lens=None if dcp == 1 else parallel.local_seq_lens(seq_lens, dcp, rank),
    )


def make_step(
    backend: ModuleType, dcp: int = 1, rank: int = 0, interleave: int = 1
) -> tuple[Any, Any]:
    """Builder and impl as vLLM makes them."""
    settings = stub.vllm_config(HEADS, dcp, interleave)
    stub.set_current_vllm_config(settings)
    builder = backend.HubMetadataBuilder(None, ["layer"], settings, torch.device("cpu"))
    mla = dict.fromkeys(
        ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "kv_b_proj")
    )
    impl = backend.HubMLAImpl(
        HEADS, D_QK, SCALE, 1, None, None, "auto", None, "decoder", None,
        kv_lora_rank=D_V, v_head_dim=32, **mla,
    )  # fmt: skip
    impl.dcp_rank = rank
    return builder, impl


class Batch:
    """Keys of each request, and what every query token of it must come to."""

    def __init__(self, lens: list[int], queries: list[int]) -> None:
        g = torch.Generator().manual_seed(5)
        self.lens, self.queries = lens, queries
        self.keys = [torch.randn(n, D_QK, generator=g) for n in lens]
        self.q = torch.randn(sum(queries), HEADS, D_QK, generator=g)
        out, lse, token = [], [], 0
        for keys, n, count in zip(self.keys, lens, queries, strict=True):
            for t in range(count):
                k = keys[: n - count + t + 1].double()
                logits = self.q[token].double() @ k.T * SCALE
                out.append(torch.softmax(logits, -1) @ k[:, :D_V])
                lse.append(torch.logsumexp(logits, -1))
                token += 1
        self.out, self.lse = torch.stack(out), torch.stack(lse)

    def cache(self, world: int = 1, rank: int = 0, interleave: int = 1) -> tuple[Any, Any]:
        width = max(self.lens) // (PAGE * world) + 1
        table = torch.randperm(len(self.lens) * width).view(-1, width).int()
        cache = torch.full((table.numel(), PAGE, D_QK), torch.nan)
        for row, keys in enumerate(self.keys):
            positions = torch.arange(len(keys))
            slots = parallel.local_slots(positions, table[row], world, rank, PAGE, interleave)
            cache.view(-1, D_QK)[slots[slots >= 0]] = keys[slots >= 0]
        return cache, table


@pytest.mark.parametrize("s_q", [1, 3])
@pytest.mark.parametrize("split", [True, False])
def test_one_step_computes_attention(backend: ModuleType, s_q: int, split: bool) -> None:
    batch = Batch([70, 5, 130], [s_q] * 3)
    builder, impl = make_step(backend)
    cache, table = batch.cache()
    common = common_metadata(batch.lens, batch.queries)
    common.block_table_tensor = table
    metadata = builder.build(0, common)
    q = (batch.q[..., :D_V], batch.q[..., D_V:]) if split else batch.q
    out, lse = impl.forward_mqa(q, cache, metadata, None)
    assert lse is None  # vLLM merges nothing without DCP
    torch.testing.assert_close(out.double(), batch.out, atol=1e-5, rtol=1e-5)
    again, _ = impl.forward_mqa(q, cache, metadata, None)  # the step's next layer
    assert torch.equal(out, again)


@pytest.mark.parametrize("interleave", [1, 16])
@pytest.mark.parametrize("queries", [[1, 1, 1, 1], [2, 2, 2, 2], [3, 1, 2, 1]])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_merge_to_the_whole(
    backend: ModuleType, world: int, queries: list[int], interleave: int
) -> None:
    batch = Batch([70, 3, 130, 17], queries)
    outs, lses = [], []
    for rank in range(world):
        builder, impl = make_step(backend, world, rank, interleave)
        cache, table = batch.cache(world, rank, interleave)
        common = common_metadata(batch.lens, queries, world, rank)
        common.dcp_local_seq_lens = parallel.local_seq_lens(
            common.seq_lens, world, rank, interleave
        )
        common.block_table_tensor = table
        out, lse = impl.forward_mqa(batch.q, cache, builder.build(0, common), None)
        assert lse.shape == (sum(queries), HEADS)
        assert lse.dtype == torch.float32
        assert lse.is_contiguous()
        outs.append(out.unsqueeze(1))
        lses.append(lse.unsqueeze(-1))
    out, lse = hub.merge_states(outs, lses)
    torch.testing.assert_close(out[:, 0].double(), batch.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse[..., 0].double(), batch.lse, atol=1e-5, rtol=1e-5)


def test_the_builder_takes_ragged_queries_only_over_ranks(backend: ModuleType) -> None:
    alone, _ = make_step(backend)
    assert alone.query_len_support is stub.QueryLenSupport.UNIFORM
    assert not alone.supports_dcp_with_varlen
    sharded, _ = make_step(backend, dcp=2)
    assert sharded.query_len_support is stub.QueryLenSupport.VARLEN
    assert sharded.supports_dcp_with_varlen


def test_metadata_is_one_value_per_step(backend: ModuleType) -> None:
    builder, _ = make_step(backend)
    common = common_metadata([5], [1])
    steps = [builder.build(0, common).decode.sched for _ in range(2)]
    assert all(isinstance(step, hub.SchedMeta) for step in steps)
    assert steps[0] is not steps[1]


def test_batch_invariance_reaches_the_call(
    backend: ModuleType, vllm: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def called(q: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return torch.zeros(*q.shape[:3], D_V), torch.zeros(q.shape[0], HEADS, q.shape[1])

    monkeypatch.setattr(hub, "flash_mla_with_kvcache", called)
    vllm["vllm.envs"].VLLM_BATCH_INVARIANT = True
    builder, impl = make_step(backend)
    metadata = builder.build(0, common_metadata([5], [1]))
    impl.forward_mqa(torch.zeros(1, HEADS, D_QK), torch.zeros(1, PAGE, D_QK), metadata, None)
    assert seen["batch_invariant"] is True


@pytest.mark.parametrize(
    ("position", "value", "named"),
    [(4, [1.0], "alibi_slopes"), (5, 128, "sliding_window"), (8, "encoder", "attn_type")],
)
def test_layers_it_cannot_serve_are_refused_by_name(
    backend: ModuleType, position: int, value: Any, named: str
) -> None:
    arguments: list[Any] = [HEADS, D_QK, SCALE, 1, None, None, "auto", None, "decoder", None]
    arguments[position] = value
    with pytest.raises(NotImplementedError, match=named):
        backend.HubMLAImpl(*arguments)


def test_the_cpu_form_keeps_the_rank_that_vllm_pins_to_one(vllm: dict[str, ModuleType]) -> None:
    cpu = importlib.import_module("flashmla_hub.engines.vllm.cpu")
    stub.set_current_vllm_config(stub.vllm_config(HEADS, dcp=2))
    impl = cpu.HubCPUMLABackend.get_impl_cls()(
        HEADS, D_QK, SCALE, 1, None, None, "auto", None, "decoder", None, kv_lora_rank=D_V
    )
    assert impl.dcp_world_size == 2
    assert impl.need_to_return_lse_for_decode

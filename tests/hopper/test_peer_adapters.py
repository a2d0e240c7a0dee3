"""The peers' adapters on stand-ins of their packages, through the public call."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import peer_fakes
import pytest
import torch

import flashmla_hub
from flashmla_hub import foreign, testing
from flashmla_hub.backends.fa3.plugin import FA3Gathered, FA3Paged
from flashmla_hub.backends.flashinfer.plugin import FlashInfer
from flashmla_hub.backends.upstream.plugin import Upstream
from flashmla_hub.bench.runner import cosine_difference
from flashmla_hub.bench.shapes import Shape, make_case
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NoBackendError, NotSupportedError
from flashmla_hub.request import KernelKey
from tests.ports.requests import Dense, check_dense
from tests.simulated_ports.backends import simulated

H100 = DeviceInfo("nvidia", "sm_90", "cuda", multiprocessors=132)
ADAPTERS = (Upstream, FlashInfer, FA3Paged, FA3Gathered)
SERVED_BY = {
    "sgl": "upstream",
    "g3": "upstream",
    "g1": "upstream",
    "flashinfer": "flashinfer",
    "flashinfer_old": "flashinfer",
    "fa3": "fa3",
    "fa3_fwd": "fa3_gathered",
}
SHAPES = {
    "one query": {"h_q": 4},
    "h_q 12": {"h_q": 12, "lens": (65, 3)},
    "s_q 3 causal": {"s_q": 3, "h_q": 8, "causal": True, "lens": (70, 0, 2)},
    "page 128": {"page": 128, "h_q": 4, "lens": (130, 1)},
    "page strided": {"strided": "page", "h_q": 4, "lens": (65, 3)},
    "scale": {"scale": 0.1147, "h_q": 4, "lens": (65,)},
    "all rows empty": {"lens": (0, 0)},
}
CASES = [
    (package, shape)
    for package in SERVED_BY
    for shape in (SHAPES if package in ("sgl", "flashinfer", "fa3", "fa3_fwd") else ["one query"])
]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    for table in ("_loaded", "_importers", "_hidden"):
        monkeypatch.setattr(foreign, table, {})

    def put(label: str) -> None:
        monkeypatch.syspath_prepend(str(peer_fakes.FAKES[label].install(tmp_path / label)))

    yield put
    names = ("flash_mla", "flash_mla_cuda", "flashinfer", "flash_attn_interface")
    for name in [m for m in sys.modules if m.partition(".")[0] in (*names, "fa3_fwd_interface")]:
        del sys.modules[name]


@contextlib.contextmanager
def on_h100() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for adapter in ADAPTERS:
            stack.enter_context(testing.registered(simulated(adapter)))
        stack.enter_context(flashmla_hub.simulate_device("nvidia", "sm_90"))
        yield


@pytest.mark.parametrize(("package", "shape"), CASES)
def test_serves_the_contract(package: str, shape: str, install: Callable[[str], None]) -> None:
    install(package)
    with on_h100():
        check_dense(f"simulated_{SERVED_BY[package]}", **SHAPES[shape])


def test_several_kv_heads(install: Callable[[str], None]) -> None:
    install("sgl")
    with on_h100():
        check_dense("simulated_upstream", h_q=6, h_kv=2)


def test_lengths_that_change_in_place_are_planned_anew(install: Callable[[str], None]) -> None:
    for package in ("sgl", "flashinfer"):
        install(package)
        request = Dense(h_q=4, lens=(70, 3, 129))
        request.make()
        name = f"simulated_{SERVED_BY[package]}"
        with on_h100():
            meta, _ = flashmla_hub.get_mla_metadata()
            request.judge(*request.call(name, tile_scheduler_metadata=meta), package)
            request.cache_seqlens.copy_(torch.tensor([64, 0, 128], dtype=torch.int32))
            request.judge(*request.call(name, tile_scheduler_metadata=meta), package)


def test_page_ids_that_change_in_place_are_seen(install: Callable[[str], None]) -> None:
    install("flashinfer")
    request = Dense(h_q=4, lens=(128, 128))
    request.make()
    with on_h100():
        meta, _ = flashmla_hub.get_mla_metadata()
        call = {"backend": "simulated_flashinfer", "tile_scheduler_metadata": meta}
        request.judge(*request.call(**call))
        request.table[:, :2] = request.table[:, :2].flip(0).clone()
        request.judge(*request.call(**call))


def test_results_go_where_the_caller_says(install: Callable[[str], None]) -> None:
    for package in ("sgl", "flashinfer", "fa3_fwd"):
        backend = SERVED_BY[package]
        install(package)
        request = Dense(s_q=2, h_q=4, causal=True, lens=(65, 1))
        request.make()
        out = torch.full((2, 2, 4, 512), float("nan"), dtype=torch.bfloat16)
        lse = torch.full((2, 4, 2), float("nan"))
        with on_h100():
            got = request.call(f"simulated_{backend}", out=out, lse_out=lse)
        assert got[0] is out
        assert got[1] is lse
        request.judge(out, lse, package)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
def test_nothing_installed_is_said_with_what_to_install(adapter: type) -> None:
    (reason,) = adapter().environment_reasons(H100)
    assert "not installed" in reason
    assert "pip install" in reason or "build" in reason
    with pytest.raises(NotSupportedError, match="not installed"):
        adapter().bind(KernelKey(), H100)
    assert adapter().environment_reasons(DeviceInfo("amd", "gfx942", "cuda")) == ()


def test_the_generation_without_dense_decode_is_told_from_its_source(
    install: Callable[[str], None],
) -> None:
    install("latest")
    (reason,) = Upstream().environment_reasons(H100)
    assert "no dense decode" in reason
    assert "sgl-flash-mla" in reason


def test_a_flashinfer_without_mla_is_refused(install: Callable[[str], None]) -> None:
    install("flashinfer_older")
    (reason,) = FlashInfer().environment_reasons(H100)
    assert "0.1.6 has no MLA" in reason


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"d_qk": 320, "d_v": 256},
        {"batch_invariant": True},
        {"kv_format": "v32"},
        {"op": "sparse_decode", "topk": 64},
    ],
    ids=str,
)
def test_refuses_what_it_cannot_do(adapter: type, change: dict[str, object]) -> None:
    with pytest.raises(NotSupportedError):
        adapter().bind(KernelKey().with_(**change), H100)


@pytest.mark.parametrize("package", ["flashinfer", "fa3"])
def test_hazards_keep_a_peer_from_being_chosen_by_itself(
    package: str, install: Callable[[str], None]
) -> None:
    install(package)
    name = SERVED_BY[package]
    decision = flashmla_hub.explain(KernelKey(), device=H100)
    candidate = next(c for c in decision.candidates if c.backend == name)
    assert "needs_finite_cache" in candidate.hazards
    assert not candidate.automatic


def test_a_package_that_is_not_there_is_never_imported() -> None:
    request = Dense()
    request.make()
    with on_h100(), pytest.raises(NoBackendError, match="FlashMLA is not installed"):
        request.call("simulated_upstream")


@pytest.mark.parametrize("package", ["sgl", "g3", "g1", "flashinfer", "fa3", "fa3_fwd"])
def test_the_benchmark_calls_a_peer_as_its_own_users_do(
    package: str, install: Callable[[str], None]
) -> None:
    install(package)
    adapter = next(a for a in ADAPTERS if a.name == SERVED_BY[package])
    case = make_case(Shape(2, 2, 4, 70), 0, torch.device("cpu"))
    run = adapter().peer_call(case)
    out, _ = flashmla_hub.flash_mla_with_kvcache(
        case.q, case.k_cache, case.block_table, case.cache_seqlens, 512, causal=True,
        backend="torch",
    )  # fmt: skip
    for _ in range(2):
        assert cosine_difference(run().double(), out.double()) < 1e-5

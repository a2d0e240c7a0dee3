"""The Hopper backend's host side on the card: build, capture, streams, threads, compile."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from gpu_cases import Case, check, decode, make, needs_hopper, oracle, run_and_check, same_bits

import flashmla_hub
from flashmla_hub import api, config
from flashmla_hub.backends.hopper.build import cache_key
from flashmla_hub.backends.hopper.compilers import find_compilers
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.backends.hopper.store import CubinStore, Entry
from flashmla_hub.backends.hopper.units import Unit
from flashmla_hub.backends.hopper.variants import Variant
from flashmla_hub.call import DenseDecode
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

pytestmark = [pytest.mark.gpu, needs_hopper]

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (3000, 100, 64, 1, 2047, 0)


def call(t, **options):
    """The public call, allocating its results."""
    case = t.case
    return flashmla_hub.flash_mla_with_kvcache(
        t.q, t.cache, t.table, t.lengths, 512, causal=case.masked, backend="hopper", **options
    )


def test_a_key_first_seen_in_a_capture_is_refused_and_the_capture_stays_valid() -> None:
    known, new = make(Case(LENGTHS, h_q=24)), make(Case(LENGTHS, h_q=23))
    out, lse = decode(known)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(NotSupportedError, match="before capture"):
            call(new)
        again, lse_again = call(known)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(again, out)
    assert same_bits(lse_again, lse)
    check(*call(new), oracle(new), "after the capture")


def test_warmup_makes_a_key_capturable() -> None:
    case = Case(LENGTHS, h_q=22)
    t = make(case)
    flashmla_hub.warmup(KernelKey(h_q=22), backend="hopper")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = call(t)
    graph.replay()
    torch.cuda.synchronize()
    check(out, lse, oracle(t), case)


def test_a_captured_step_of_many_layers_shares_its_metadata() -> None:
    layers = [make(Case(LENGTHS, h_q=16, seed=i)) for i in range(6)]
    for t in layers:  # one table, one cache: queries differ
        t.table, t.lengths, t.cache = layers[0].table, layers[0].lengths, layers[0].cache
    expected = [call(t) for t in layers]
    graph = torch.cuda.CUDAGraph()
    meta, _ = flashmla_hub.get_mla_metadata()
    with torch.cuda.graph(graph):
        got = [call(t, tile_scheduler_metadata=meta) for t in layers]
    graph.replay()
    torch.cuda.synchronize()
    for (out, lse), (want, want_lse) in zip(got, expected, strict=True):
        assert same_bits(out, want)
        assert same_bits(lse, want_lse)


def test_two_streams_do_not_share_scratch() -> None:
    cases = [make(Case((20000, 9000, 100), h_q=64, seed=i)) for i in range(2)]
    expected = [call(t) for t in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    results = []
    for _ in range(50):
        for stream, t in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                results.append(call(t))
    torch.cuda.synchronize()
    for i, (out, lse) in enumerate(results):
        assert same_bits(out, expected[i % 2][0])
        assert same_bits(lse, expected[i % 2][1])


def test_threads_that_have_made_no_cuda_call() -> None:
    t = make(Case(LENGTHS, h_q=64))
    want, want_lse = call(t)
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                out, lse = call(t)
            assert same_bits(out, want)
            assert same_bits(lse, want_lse)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_compiles_in_one_graph_and_a_changing_batch_does_not_recompile() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    def step(q, cache, table, lengths):
        out, lse = flashmla_hub.flash_mla_with_kvcache(
            q, cache, table, lengths, 512, backend="hopper"
        )
        return out * 2, lse

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    t = make(Case((3000, 100, 64, 1, 2047, 5, 9, 700), h_q=16))
    for batch in (8, 5, 3, 7):
        q, table, lengths = (x[:batch].clone() for x in (t.q, t.table, t.lengths))
        part = (q, t.cache, table, lengths)
        out, lse = compiled(*part)
        want, want_lse = step(*part)
        assert same_bits(out, want)
        assert same_bits(lse, want_lse)
    assert counter.frame_count == 1
    inductor = torch.compile(step, fullgraph=True)
    assert same_bits(inductor(*part)[0], want)


@pytest.mark.parametrize("scale", [0.1147, 1.0, -0.04, 0.0, 1e-40])
def test_any_scale(scale: float) -> None:
    t = make(Case((130, 1, 64, 0), h_q=16))
    out, lse = call(t, softmax_scale=scale)
    want, want_lse = flashmla_hub.flash_mla_with_kvcache(
        t.q, t.cache, t.table, t.lengths, 512, softmax_scale=scale, backend="torch"
    )
    torch.testing.assert_close(out, want, atol=8e-4, rtol=2.01 / 128)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=8.01 / 65536)


def test_a_broadcast_q() -> None:
    t = make(Case((130, 70, 64, 3), h_q=16))
    t.q = t.q[:1].expand(4, -1, -1, -1)
    check(*call(t), oracle(t), "broadcast q")


@pytest.mark.parametrize("strides", [(16 * 513, 513, 513, 1), (16 * 1024, 1024, 1024, 2)])
def test_an_out_that_16_byte_stores_cannot_reach(strides: tuple[int, ...]) -> None:
    t = make(Case((130, 70, 64), h_q=16))
    whole = torch.full((3 * strides[0] + 8,), math.nan, device="cuda", dtype=torch.bfloat16)
    out = whole.as_strided((3, 1, 16, 512), strides)
    got, lse = call(t, out=out)
    assert got is out
    check(out, lse, oracle(t), strides)


@pytest.mark.parametrize("invariant", [False, True])
def test_batches_past_one_launch(invariant: bool) -> None:
    case = Case(tuple((7 * i) % 130 for i in range(4500)), h_q=2)
    run_and_check(case, batch_invariant=invariant)


def test_a_batch_invariant_batch_launched_in_slices_keeps_its_bits() -> None:
    t = make(Case(tuple(66000 - 500 * i for i in range(40)), h_q=128))
    out, lse = call(t, batch_invariant=True)
    part = slice(33, 40)
    t.q, t.table, t.lengths = t.q[part], t.table[part], t.lengths[part]
    alone, alone_lse = call(t, batch_invariant=True)
    assert same_bits(out[part], alone)
    assert same_bits(lse[part], alone_lse)


def test_a_second_device_is_made_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    t = make(Case(LENGTHS, h_q=64))
    want, _ = call(t)
    for name in ("q", "cache", "table", "lengths"):
        setattr(t, name, getattr(t, name).to("cuda:1"))
    out, _ = call(t)
    assert out.device == torch.device("cuda:1")
    assert same_bits(out.to("cuda:0"), want)
    assert torch.cuda.current_device() == 0


def bind_afresh(cache: Path) -> tuple[object, ...]:
    """The origins of the base variant's cubins, loaded by a backend of its own."""
    with config.override(cache_dir=cache):
        kernel = HopperBackend().bind(KernelKey(), api.resolve_device(torch.device("cuda")))
    return kernel.kernels.origins


def test_compiled_once_then_loaded_from_disk_also_by_another_process(tmp_path: Path) -> None:
    first = bind_afresh(tmp_path)
    assert {origin.source for origin in first} <= {"nvrtc", "nvcc", "aot"}
    second = bind_afresh(tmp_path)
    if first[0].source != "aot":
        assert [origin.source for origin in second] == ["disk", "disk"]
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import torch
        from flashmla_hub import api, config
        from flashmla_hub.backends.hopper.plugin import HopperBackend
        from flashmla_hub.request import KernelKey
        torch.zeros(1, device="cuda")
        with config.override(cache_dir=Path(sys.argv[1])):
            started = time.perf_counter()
            device = api.resolve_device(torch.device("cuda"))
            kernel = HopperBackend().bind(KernelKey(), device)
            took = time.perf_counter() - started
        print([origin.source for origin in kernel.kernels.origins], f"{took * 1e3:.0f} ms")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print("compiled:", [f"{o.source} {o.compile_s:.2f} s" for o in first])
    print("second process:", done.stdout.strip())
    assert "nvrtc" not in done.stdout


def test_a_cubin_this_driver_refuses_is_replaced_and_noted(tmp_path: Path) -> None:
    unit, store = Variant().main, CubinStore(tmp_path / "hopper")
    digest = unit.digest()
    compilers, reasons = find_compilers()
    if not compilers:
        pytest.skip("; ".join(reasons))
    (tmp_path / "other.cu").write_text('extern "C" __global__ void fmh_dense_decode() {}\n')
    foreign = compilers[0].compile(Unit("other", "other.cu", arch="sm_80"), tmp_path).cubin
    key = cache_key(digest, compilers[0].fingerprint)
    store.save(key, Entry(unit.name, digest, compilers[0].fingerprint, foreign))
    backend = HopperBackend()
    device = api.resolve_device(torch.device("cuda"))
    with config.override(cache_dir=tmp_path):
        kernel = backend.bind(KernelKey(), device)
    assert kernel.kernels.origins[0].source != "disk"
    (note,) = backend.notes(device)
    assert "CUDA_ERROR" in note
    t = make(Case(LENGTHS, h_q=128))
    out, lse = kernel.run(DenseDecode(t.q, t.cache, t.table, t.lengths, 576**-0.5))
    check(out, lse, oracle(t), "after the refusal")

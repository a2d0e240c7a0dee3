"""``flashmla-hub bench``: arithmetic, tables, plot and JSON on synthetic timings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_plots import png_size

from flashmla_hub import testing
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.bench import runner, shapes, timing
from flashmla_hub.bench.results import Row, best, ratio, summarize
from flashmla_hub.bench.shapes import Shape, grid, make_case, parse
from flashmla_hub.bench.timing import Ceilings
from flashmla_hub.capabilities import ANY, Capabilities
from flashmla_hub.cli import bench, main
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.request import KernelKey

CEILINGS = Ceilings(gemm_tflops=780.0, copy_gbps=3006.0, read_gbps=3080.0)
CPU = DeviceInfo("cpu", "x86_64", "cpu")


def row(shape: Shape, **us: float) -> Row:
    lengths = shape.lengths(0)
    return Row(shape, shape.flop(lengths), shape.bytes(lengths), us=us)


def test_rates_agree_with_published_ones() -> None:
    compute = row(Shape(128, 1, 128, 8192), flashmla=513.0)
    assert compute.tflops("flashmla") == pytest.approx(569, abs=1)
    memory = row(Shape(128, 1, 16, 8192), flashmla=440.0)
    assert memory.gbps("flashmla") == pytest.approx(2746, abs=2)


def test_ratio_is_to_the_best_peer_and_above_one_where_ours_is_faster() -> None:
    times = {"ours": 100.0, "a": 120.0, "b": 110.0}
    assert best(times, ["a", "b", "absent"]) == ("b", 110.0)
    assert ratio(times, "ours", ["a", "b"]) == pytest.approx(1.1)
    assert ratio(times, "ours", ["absent"]) is None
    assert ratio(times, "absent", ["a"]) is None
    assert ratio(times, "a", ["a", "b"]) == pytest.approx(110 / 120), "not against itself"


def test_summary_is_a_geometric_mean_with_the_worst_row_named() -> None:
    rows = [
        row(Shape(1, 1, 16, 64), ours=10.0, a=20.0),
        row(Shape(2, 1, 16, 64), ours=10.0, a=5.0, b=8.0),
        row(Shape(3, 1, 16, 64), ours=10.0),
    ]
    found = summarize(rows, "ours", ["a", "b"], "the best peer")
    assert found is not None
    assert found.geomean == pytest.approx(1.0)
    assert (found.worst, found.worst_shape, found.rows) == (0.5, "b2 s_q1 h16 s64", 2)
    assert summarize(rows, "ours", ["absent"], "x") is None


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,0", "1,2,3,4,5", "a,1,1,1", "1,1,1,1,varied,", "1,1,1,1,page0"]
)
def test_a_bad_shape_is_wrong_use(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="B,S_Q,H_Q,S_K"):
        parse(text)


def test_shapes_parse_and_print() -> None:
    assert parse("128, 2,16,8192,varied") == Shape(128, 2, 16, 8192, varied=True)
    assert str(parse("1,1,16,64")) == "b1 s_q1 h16 s64"
    paged = parse("1,1,16,64,varied,page16")
    assert paged == Shape(1, 1, 16, 64, varied=True, page=16)
    assert str(paged) == "b1 s_q1 h16 s64 varied page16"
    assert paged.key.page_block_size == 16
    assert parse("1,2,16,64").key.causal
    assert not parse("1,1,16,64").key.causal


def test_grids_are_stable_and_holdout_follows_the_seed() -> None:
    assert len(grid("std", 0)) == len(set(grid("std", 0))) == 20
    assert len(grid("small", 0)) == 8
    assert grid("holdout", 3) == grid("holdout", 3) != grid("holdout", 4)
    with pytest.raises(InvalidRequestError, match="std"):
        grid("large", 0)


def test_varied_lengths_are_seeded_and_hold_every_query() -> None:
    shape = Shape(256, 4, 16, 10, varied=True)
    lengths = shape.lengths(7)
    assert lengths == shape.lengths(7) != shape.lengths(8)
    assert min(lengths) == 4
    assert max(lengths) > 10


def test_a_case_has_pages_in_random_order_used_once() -> None:
    case = make_case(Shape(3, 1, 4, 130), 0, torch.device("cpu"))
    assert case.block_table.shape == (3, 3)
    assert sorted(case.block_table.flatten().tolist()) == list(range(9))
    assert case.cache_seqlens.tolist() == [130] * 3
    assert case.k_cache.shape == (9, 64, 1, 576)


class FakeClock:
    """Answers times from a table by the order in which runs are asked about."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.runtime = argparse.Namespace(empty_cache=lambda: None)

    def synchronize(self) -> None:
        pass

    def interleaved(self, runs: dict[str, Any], reps: int) -> dict[str, float]:
        return {name: 100.0 * (i + 1) for i, name in enumerate(runs)}

    def issue(self, run: Any) -> float:
        return 7.0

    def in_graph(self, run: Any, layers: int, reps: int) -> float:
        if run is Theirs.run:
            raise RuntimeError("operation not permitted when stream is capturing")
        return 5.0

    def ceilings(self) -> Ceilings:
        return CEILINGS

    def host_floor(self) -> dict[str, float]:
        return {"torch.empty": 2.0}


class Zeros(BoundKernel):
    def run(self, call: Any) -> Any:
        q = call.q
        out = torch.ones(*q.shape[:3], 512, dtype=q.dtype)
        return out, torch.zeros(q.shape[0], q.shape[2], q.shape[1])


class Ours(Backend):
    name = "ours"
    info = BackendInfo(summary="a backend of the hub")

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return (Capabilities(s_q=ANY),)

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        return Zeros()


class Theirs(Ours):
    name = "theirs"

    @staticmethod
    def run() -> torch.Tensor:
        return torch.ones(2, 1, 4, 512)

    def peer_call(self, case: shapes.Case) -> Callable[[], torch.Tensor]:
        return Theirs.run


class Broken(Ours):
    name = "broken"

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        raise RuntimeError("no [kernel] image\nis available")


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "DeviceClock", FakeClock)
    with (
        testing.registered(Ours()),
        testing.registered(Theirs()),
        testing.registered(Broken()),
    ):
        yield


def arguments(**changes: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args([])
    vars(args).update({"backend": ["theirs", "broken", "ours"], **changes})
    return args


def test_the_run_prints_tables_and_writes_json_and_plot(
    field: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(json=tmp_path / "b.json", plot=tmp_path / "b.png")
    chosen = [Shape(2, 1, 4, 64), Shape(1, 2, 4, 100)]
    assert bench._measure(args, CPU, chosen[:1]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "GEMM 780 TFLOP/s, copy 3006 GB/s, read 3080 GB/s" in lines
    assert (
        "| shape | broken us | ours us | theirs us | broken to best peer | ours to best peer |"
        in (lines)
    )
    assert "| b2 s_q1 h4 s64 | - | 100.0 (1 GB/s) | 200.0 (1 GB/s) | - | 2.000 |" in lines
    assert "ours against theirs: geomean 2.000, worst 2.000 (b2 s_q1 h4 s64), 1 rows" in lines
    assert "host floor: torch.empty 2.0 us" in lines
    assert "broken: PluginError" in out
    assert "no [kernel] image" in out
    assert "theirs in a graph: RuntimeError: operation not permitted" in out
    facts = json.loads((tmp_path / "b.json").read_text())
    assert facts["ceilings"]["gemm_tflops"] == 780.0
    assert facts["peers"] == ["theirs"]
    (measured,) = facts["rows"]
    assert measured["us"] == {"ours": 100.0, "theirs": 200.0}
    assert measured["graph_us"] == {"ours": 5.0}
    assert measured["host_us"] == {"ours": 7.0, "theirs": 7.0}
    assert measured["shape"] == {
        "batch": 2,
        "s_q": 1,
        "h_q": 4,
        "s_k": 64,
        "varied": False,
        "page": 64,
    }
    assert png_size(tmp_path / "b.png")[0] == 1300
    words = ["bench", "--from", str(tmp_path / "b.json")]
    plots = ["--plot", str(tmp_path / "again.png"), "--roofline", str(tmp_path / "roof.png")]
    assert main([*words, *plots, "--dark"]) == 0
    again = capsys.readouterr().out
    for line in lines[:4]:
        assert line in again
    assert "ours against theirs: geomean 2.000" in again
    assert png_size(tmp_path / "again.png") == png_size(tmp_path / "b.png")
    assert png_size(tmp_path / "roof.png")[0] == 1300
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == facts["rows"]
    assert told["summary"] == facts["summary"]


def test_an_interrupted_run_keeps_its_rows(
    field: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def stop(self: Any, runs: Any, reps: int) -> dict[str, float]:
        asked.append(runs)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"ours": 100.0, "theirs": 200.0}

    monkeypatch.setattr(FakeClock, "interleaved", stop)
    args = arguments(json=str(tmp_path / "b.json"))
    with pytest.raises(KeyboardInterrupt, match="1 of 2 shapes measured, written to"):
        bench._measure(args, CPU, [Shape(2, 1, 4, 64), Shape(1, 2, 4, 100)])
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 1


def test_an_output_that_disagrees_is_marked_and_fails_the_run(
    field: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Theirs, "peer_call", lambda self, case: lambda: -Theirs.run())
    assert bench._measure(arguments(), CPU, [Shape(2, 1, 4, 64)]) == 1
    assert "WRONG 2e+00" in capsys.readouterr().out


def test_by_default_references_are_left_out_and_peers_come_last(field: None) -> None:
    found = runner.contenders(CPU, [], Shape(1, 1, 4, 64))
    names = [contender.name for contender in found]
    assert "torch" not in names
    assert names[-1] == "theirs"
    assert found[-1].peer
    assert {"ours", "broken"} <= set(names)


def test_an_unknown_backend_is_wrong_use() -> None:
    with pytest.raises(InvalidRequestError, match="no_such"):
        runner.contenders(CPU, ["no_such"], Shape(1, 1, 4, 64))


def test_without_an_accelerator_the_command_says_so_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--device", "cpu"]) == 2
    assert "needs an accelerator" in capsys.readouterr().err
    assert main(["bench", "--device", "nvidia:sm_90"]) == 2


@pytest.mark.parametrize("size", [4, 1000])
def test_cosine_difference(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).double()
    assert runner.cosine_difference(x, x) == pytest.approx(0, abs=1e-15)
    assert runner.cosine_difference(x, -x) == pytest.approx(2)
    assert runner.cosine_difference(0 * x, 0 * x) == 0


def test_the_device_is_kept_busy_for_longer_than_the_slowest_call_takes_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spins: list[int] = []
    now = [0.0]
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 1.0)
    runtime = SimpleNamespace(
        Event=lambda enable_timing: event, synchronize=lambda device: None, _sleep=spins.append
    )
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    clock = timing.DeviceClock.__new__(timing.DeviceClock)
    clock.device, clock.runtime, clock._flush = torch.device("cpu"), runtime, torch.zeros(1)

    def takes(us: float) -> Any:
        def run() -> None:
            now[0] += us * 1e-6

        return run

    clock.interleaved({"quick": takes(5), "slow": takes(200)}, 3)
    assert len(spins) == 6
    assert min(spins) >= 3 * 200 * timing.CYCLES_PER_US * 0.99
    spins.clear()
    clock.interleaved({"quick": takes(5)}, 3)
    assert spins == [timing.HEAD_START_CYCLES] * 3

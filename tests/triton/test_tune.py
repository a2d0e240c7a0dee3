"""``flashmla-hub tune`` without a card: the clock is a stand-in."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import pytest
import torch

from flashmla_hub import tuning
from flashmla_hub.bench import shapes
from flashmla_hub.cli import tune
from flashmla_hub.device import DeviceInfo

CARD = DeviceInfo("nvidia", "sm_80", "cuda", name="NVIDIA A100")
SHAPE = shapes.Shape(2, 1, 16, 128)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tune.add_arguments(parser)
    return parser.parse_args(words)


def test_a_cpu_has_no_clock(capsys) -> None:
    assert tune.run(arguments("--device", "cpu")) == 2
    assert "accelerator" in capsys.readouterr().err


def test_the_default_stays_unless_another_is_clearly_quicker() -> None:
    assert tune.fastest({"a": 100.0, "b": 99.0}, default="a") == "a"
    assert tune.fastest({"a": 100.0, "b": 97.0}, default="a") == "b"
    assert tune.fastest({"b": 5.0, "c": 4.0}, default=None) == "c"
    assert tune.fastest({}, default="a") is None


def test_a_configuration_is_judged_over_all_shapes_that_share_it() -> None:
    rows = [{"a": 100.0, "b": 80.0}, {"a": 10.0, "b": 20.0, "c": 1.0}]
    found = tune.over_all(rows)
    assert found == pytest.approx({"a": 1000**0.5, "b": 1600**0.5})
    assert tune.fastest(found, default="b") == "a"
    assert tune.over_all([{"a": 1.0}, {"b": 4.0}]) == pytest.approx({"b": 4.0})


class Clock:
    """Gives what the next case is to have measured."""

    device = "cpu"

    def __init__(self, *times: dict[str, float]) -> None:
        self._times = list(times)

    def interleaved(self, calls, reps) -> dict[str, float]:
        return self._times.pop(0)

    def synchronize(self) -> None: ...


def test_the_backend_keeps_what_is_best_over_its_group() -> None:
    kept: list[str] = []
    backend = SimpleNamespace(
        name="x",
        trials=lambda key, device: {n: lambda: SimpleNamespace(run=lambda *_: None) for n in "ab"},
        trial_group=lambda key, device: "all",
        keep=lambda key, device, label: kept.append(label),
    )
    table = tune.Table(CARD)
    clock = Clock({"a": 100.0, "b": 80.0}, {"a": 10.0, "b": 20.0})
    for shape in (SHAPE, shapes.Shape(2, 1, 32, 128)):
        case = shapes.make_case(shape, 0, torch.device("cpu"))
        tune._tune_backend(backend, case, CARD, clock, table, 3, {})
    assert kept == ["b", "a"]
    table.add("choice", "x", {"x": 1.0})
    assert tune.Table(CARD).trials == table.trials


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Runs the command as on CARD; the list collects the shapes that were measured."""
    done: list[str] = []

    def tune_shape(shape, device, clock, table, **_) -> dict:
        done.append(str(shape))
        return {"us": {"x": 9.0, "y": 5.0}, "configs": {}, "errors": {}, "chosen": "x"}

    class Clock:
        def __init__(self, device) -> None:
            self.device = device

    monkeypatch.setattr(tune.api, "resolve_device", lambda device: CARD)
    monkeypatch.setattr(tune, "tune_shape", tune_shape)
    monkeypatch.setattr("flashmla_hub.bench.timing.DeviceClock", Clock)
    return done


def test_the_table_is_written_after_every_shape_and_known_ones_are_skipped(measured) -> None:
    words = ("--shape", "2,1,16,128", "--shape", "4,1,16,128", "--json")
    assert tune.run(arguments(*words)) == 0
    assert tune.run(arguments(*words, "--shape", "8,1,16,128")) == 0
    assert measured == ["b2 s_q1 h16 s128", "b4 s_q1 h16 s128", "b8 s_q1 h16 s128"]
    assert tune.run(arguments(*words, "--again")) == 0
    assert len(measured) == 5


def test_dispatch_reads_what_was_written(measured, capsys) -> None:
    assert tune.run(arguments("--shape", "2,1,16,128", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["fastest"] == "y"
    assert tuning.preferred(tune.choice_of(SHAPE, 0), CARD) == "y"

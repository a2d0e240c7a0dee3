"""``flashmla-hub build``: what it lists, builds and reports."""

from __future__ import annotations

import json

import pytest

from flashmla_hub import testing
from flashmla_hub.backend import Backend, BoundKernel, BuildItem
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.cli import main
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey


class Compiling(Backend):
    """Compiles three kernels on the CPU; the one for fp16 fails if it is told to."""

    name = "compiling"

    def __init__(self, fails: bool = False, lacks: tuple[str, ...] = ()) -> None:
        self.fails, self.lacks, self.bound = fails, lacks, []

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return (Capabilities(dtypes=("bfloat16", "float16")),)

    def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
        return self.lacks

    def build_items(self, device: DeviceInfo) -> list[BuildItem]:
        keys = [KernelKey(), KernelKey(dtype="float16"), KernelKey(h_q=16)]
        return [BuildItem(f"kernel-{i}", key, concurrent=i > 0) for i, key in enumerate(keys)]

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        if self.fails and key.dtype == "float16":
            raise RuntimeError("error: identifier is undefined")
        self.bound.append(key)
        return BoundKernel()


def test_lists_without_building(capsys: pytest.CaptureFixture[str]) -> None:
    backend = Compiling()
    with testing.registered(backend):
        assert main(["build", "--list", "--json", "--backend", "compiling"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["item"] for row in rows] == ["kernel-0", "kernel-1", "kernel-2"]
    assert backend.bound == []


def test_builds_every_item_and_reports_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    backend = Compiling()
    with testing.registered(backend):
        assert main(["build", "--backend", "compiling", "--device", "cpu", "--json"]) == 0
    assert len(backend.bound) == 3
    rows = json.loads(capsys.readouterr().out)
    assert all(row["seconds"] >= 0 and row["error"] == "" for row in rows)


def test_one_failure_does_not_stop_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    backend = Compiling(fails=True)
    with testing.registered(backend):
        assert main(["build", "--backend", "compiling", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "identifier is undefined" in out
    assert "2 of 3 built" in out
    assert len(backend.bound) == 2


def test_what_the_machine_lacks_is_said_before_anything_is_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = Compiling(lacks=("NVRTC: not installed; pip install 'flashmla-hub[cuda13]'",))
    with testing.registered(backend):
        assert main(["build", "--backend", "compiling", "--device", "cpu"]) == 1
    assert "flashmla-hub[cuda13]" in capsys.readouterr().err
    assert backend.bound == []


def test_a_simulated_device_can_be_listed_and_not_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["build", "--device", "nvidia:sm_90", "--backend", "hopper"]
    assert main([*words, "--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 42
    assert main(words) == 2
    assert "--list" in capsys.readouterr().err


def test_a_machine_with_nothing_to_build_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--device", "cpu", "--backend", "torch"]) == 0
    assert "nothing to build" in capsys.readouterr().out


def test_an_unknown_backend_is_wrong_use() -> None:
    assert main(["build", "--backend", "no_such"]) == 2

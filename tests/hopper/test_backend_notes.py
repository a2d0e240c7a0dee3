"""What a backend has to say after it came up in another way than planned reaches the user."""

from __future__ import annotations

import json

import pytest

import flashmla_hub
from flashmla_hub import testing
from flashmla_hub.backend import Backend, BoundKernel
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.cli import main
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

NOTE = "disk cubin of nvrtc 13.0: cuModuleLoadData failed with CUDA_ERROR_NO_BINARY_FOR_GPU (209)"


class FellBack(Backend):
    name = "fell_back"

    def __init__(self) -> None:
        self.bound = False

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return (Capabilities(),)

    def notes(self, device: DeviceInfo) -> tuple[str, ...]:
        return (NOTE,) if self.bound else ()

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        self.bound = True
        return BoundKernel()


def test_decision_and_doctor_show_a_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    with testing.registered(FellBack()):
        before = flashmla_hub.explain(KernelKey(), backend="fell_back")
        assert NOTE not in str(before)
        bound = flashmla_hub.warmup(KernelKey(), backend="fell_back")
        assert bound.candidate is not None
        assert bound.candidate.notes == (NOTE,)
        after = flashmla_hub.explain(KernelKey(), backend="fell_back")
        assert NOTE in str(after)
        assert main(["doctor", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert list(notes.values()) == [NOTE]

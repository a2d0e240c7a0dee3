"""The kit on an accelerator: oracle and placement on device tensors, graphs, two streams."""

import pytest
import torch

from flashmla_hub.conformance.runner import Options, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_torch_backend_reaches_l1_on_the_device() -> None:
    result = run("torch", Options(level="L1", device="cuda"))
    assert [(r.id, r.diagnosis, r.reason) for r in result.results if r.outcome.bad] == []
    assert result.badge.startswith("L1 v1 cuda")


@pytest.mark.full
@pytest.mark.parametrize("select", ["offsets", "capture", "streams", "soak", "merge"])
def test_torch_backend_on_the_device(select: str) -> None:
    result = run("torch", Options(level="L3", device="cuda", select=select))
    assert [(r.id, r.diagnosis, r.reason) for r in result.results if r.outcome.bad] == []

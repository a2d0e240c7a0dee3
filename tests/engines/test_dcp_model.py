"""The cost model counts the bytes that the hub's own code sends, at every world size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import dcp_model as model  # noqa: E402


@pytest.fixture(scope="module")
def kernel() -> model.Kernel:
    measured = json.loads((BENCHMARKS / "dcp_kernel_table.json").read_text())
    return model.fit(measured["rows"], measured["event_us"])


def test_bytes_are_those_of_the_code() -> None:
    assert model.simulate() == []


def test_the_fit_is_near_the_measured_times(kernel: model.Kernel) -> None:
    measured = json.loads((BENCHMARKS / "dcp_kernel_table.json").read_text())
    for row in measured["rows"]:
        us = row["us"] - measured["event_us"]
        assert kernel.us(row["batch"], row["s_q"], row["h_q"], row["s_k"]) == pytest.approx(
            us, rel=0.35
        )


def test_sharing_divides_the_cache_and_not_more(kernel: model.Kernel) -> None:
    links = (model.NVLINK, model.NETWORK)
    one = model.step(model.Model(), kernel, links, 16, 131072, 1, "a2a")
    eight = model.step(model.Model(), kernel, links, 16, 131072, 8, "a2a")
    assert eight.cache_bytes * 8 == one.cache_bytes == 16 * 131072 * 1152 * 61
    assert one.kernel_us > eight.kernel_us > one.kernel_us / 8


def test_a_measured_link_is_found_again(kernel: model.Kernel) -> None:
    truth = model.Link(2, 20.0, 150e3)
    points = []
    for batch in (1, 16, 64):
        point = {"batch": batch, "s_q": 1, "h_q": 128, "s_k": 8192}
        point["kernel_us"] = kernel.us(batch, 1, 128, 4096)
        for mode in ("a2a", "ag_rs"):
            received = model.received_bytes(mode, batch, 1, 128, 2)
            point[f"{mode}_us"] = sum(
                truth.latency + n / truth.bandwidth for n in received.values()
            )
        points.append(point)
    link, lines = model.compare({"world_size": 2, "points": points}, kernel)
    assert link.latency == pytest.approx(truth.latency, rel=1e-6)
    assert link.bandwidth == pytest.approx(truth.bandwidth, rel=1e-6)
    assert all("(1.00x)" in line for line in lines)

"""What was measured, and the arithmetic on it: ratios, geometric means, rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flashmla_hub.bench.shapes import Shape


@dataclass
class Row:
    """One shape: microseconds by backend (device time, host time to issue, per layer in a
    graph), the cosine difference of each output to the first one's, and what failed."""

    shape: Shape
    flop: int
    bytes: int
    us: dict[str, float] = field(default_factory=dict)
    host_us: dict[str, float] = field(default_factory=dict)
    graph_us: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def tflops(self, name: str) -> float:
        return self.flop / self.us[name] / 1e6

    def gbps(self, name: str) -> float:
        return self.bytes / self.us[name] / 1e3

    def to_json(self) -> dict[str, Any]:
        shape = vars(self.shape)
        return {**vars(self), "shape": dict(shape), "name": str(self.shape)}


@dataclass(frozen=True)
class Summary:
    """One of ours against the best peer of each row: geometric mean and worst of the ratios
    peer / ours (above 1: ours is faster), over ``rows`` rows."""

    backend: str
    against: str
    geomean: float
    worst: float
    worst_shape: str
    rows: int


def best(times: Mapping[str, float], names: Iterable[str]) -> tuple[str, float] | None:
    """The fastest of ``names`` among ``times``."""
    there = [(times[name], name) for name in names if name in times]
    if not there:
        return None
    took, name = min(there)
    return name, took


def ratio(times: Mapping[str, float], ours: str, peers: Iterable[str]) -> float | None:
    """Time of the best peer over ours; None where either is missing."""
    peer = best(times, (p for p in peers if p != ours))
    return None if peer is None or ours not in times else peer[1] / times[ours]


def summarize(
    rows: Iterable[Row], ours: str, peers: Iterable[str], against: str, field_name: str = "us"
) -> Summary | None:
    """``ours`` against the best of ``peers`` on each row; None where no row has both."""
    peers = tuple(peers)
    found = [
        (value, str(row.shape))
        for row in rows
        if (value := ratio(getattr(row, field_name), ours, peers)) is not None
    ]
    if not found:
        return None
    worst, shape = min(found)
    mean = math.exp(sum(math.log(value) for value, _ in found) / len(found))
    return Summary(ours, against, mean, worst, shape, len(found))

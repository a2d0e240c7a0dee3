"""Clocks: device time of interleaved calls, host time to issue one, time per layer in a graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

Run = Callable[[], Any]

FLUSH_BYTES = 256 << 20  # more than any last-level cache
# Clock cycles the device is kept busy while the host issues a call, so that issue cost stays out:
# at least these, and thrice what the slowest call takes the host (on a busy machine, 200 us).
HEAD_START_CYCLES = 200_000
CYCLES_PER_US = 2_000


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches on plain work: TFLOP/s of a bf16 GEMM, GB/s of a copy (read and
    write counted) and of a sum (read only)."""

    gemm_tflops: float
    copy_gbps: float
    read_gbps: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class DeviceClock:
    """Timing through torch's events of one accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.runtime: Any = getattr(torch, device.type)
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        self.runtime.synchronize(self.device)

    def interleaved(self, runs: Mapping[str, Run], reps: int) -> dict[str, float]:
        """Median microseconds of each run: caches flushed before every call, the runs taking
        turns call by call so that clock drift hits all alike."""
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
        event = self.runtime.Event
        issue_us = max(self.issue(run, calls=3, rounds=3) for run in runs.values())
        head_start = max(HEAD_START_CYCLES, int(3 * issue_us * CYCLES_PER_US))
        for _ in range(reps):
            for name, run in runs.items():
                self._flush.zero_()
                start, end = event(enable_timing=True), event(enable_timing=True)
                self._spin(head_start)
                start.record()
                run()
                end.record()
                events[name].append((start, end))
        self.synchronize()
        return {
            name: statistics.median(start.elapsed_time(end) for start, end in pairs) * 1e3
            for name, pairs in events.items()
        }

    def _spin(self, cycles: int) -> None:
        sleep = getattr(self.runtime, "_sleep", None)
        if sleep is not None:
            sleep(cycles)

    def issue(self, run: Run, calls: int = 50, rounds: int = 9) -> float:
        """Median microseconds of host time to issue one call."""
        times = []
        for _ in range(rounds):
            self.synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                run()
            times.append((time.perf_counter() - started) / calls * 1e6)
        self.synchronize()
        return statistics.median(times)

    def host_floor(self) -> dict[str, float]:
        """Microseconds of host time that no backend can go below: an allocation, one launch."""
        one = torch.zeros(1, device=self.device)
        return {
            "torch.empty": self.issue(lambda: torch.empty(4096, device=self.device)),
            "one torch kernel": self.issue(one.zero_),
        }

    def in_graph(self, run: Run, layers: int, reps: int) -> float:
        """Median microseconds per call of ``layers`` calls captured in one graph."""
        run()
        self.synchronize()
        graph = self.runtime.CUDAGraph()
        with self.runtime.graph(graph):
            for _ in range(layers):
                run()
        graph.replay()
        self.synchronize()
        times = []
        for _ in range(reps):
            start, end = (self.runtime.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / layers * 1e3)
        return statistics.median(times)

    def ceilings(self, reps: int = 10) -> Ceilings:
        n, size = 8192, 1 << 30
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16)
        source = torch.zeros(size // 4, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        runs: dict[str, Run] = {
            "gemm": lambda: a @ a,
            "copy": lambda: target.copy_(source),
            "read": lambda: source.sum(),
        }
        for run in runs.values():
            run()
        took = self.interleaved(runs, reps)
        return Ceilings(
            gemm_tflops=2 * n**3 / took["gemm"] / 1e6,
            copy_gbps=2 * size / took["copy"] / 1e3,
            read_gbps=size / took["read"] / 1e3,
        )

"""What the hub adds to a call: medians in one run, against a dict lookup and a pluggy hook call.

    python benchmarks/dispatch_overhead.py [--calls N] [--json]

A backend that does nothing is bound, so what is timed is the hub. "bound call" is the bound
kernel called directly with the same tensors; the overhead rows are differences to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import pluggy
import torch

import flashmla_hub as hub
from flashmla_hub import dispatch
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.call import DenseDecode
from flashmla_hub.capabilities import ANY, Capabilities
from flashmla_hub.testing import registered

REPEATS = 15


class NullKernel(BoundKernel):
    """Returns prepared tensors."""

    def __init__(self) -> None:
        self.result = torch.empty(1), torch.empty(1)

    def run(self, call: Any) -> Any:
        return self.result


class NullBackend(Backend):
    """Takes every dense call and does nothing."""

    name = "null"
    info = BackendInfo(summary="does nothing")

    def capabilities(self, device: Any) -> tuple[Capabilities, ...]:
        return (Capabilities(s_q=ANY, page_block_size=ANY),)

    def rank(self, choice: Any, device: Any) -> int:
        return 99

    def bind(self, key: Any, device: Any) -> BoundKernel:
        return NullKernel()


class _HookSpec:
    @pluggy.HookspecMarker("overhead")
    def answer(self, x: int) -> int:
        return 0


class _HookImpl:
    @pluggy.HookimplMarker("overhead")
    def answer(self, x: int) -> int:
        return x


def median_us(call: Callable[[], Any], calls: int) -> float:
    """Median over repeats of the mean time of one call, in microseconds."""
    for _ in range(calls // 10):
        call()
    samples = []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter_ns() - start) / calls / 1000)
    return statistics.median(samples)


def measure(calls: int) -> dict[str, float]:
    q = torch.zeros(4, 1, 128, 576, dtype=torch.bfloat16)
    k_cache = torch.zeros(8, 64, 1, 576, dtype=torch.bfloat16)
    table = torch.zeros(4, 2, dtype=torch.int32)
    lens = torch.ones(4, dtype=torch.int32)
    manager = pluggy.PluginManager("overhead")
    manager.add_hookspecs(_HookSpec)
    manager.register(_HookImpl())
    lookup = {(1, 2, 3): 4}
    with registered(NullBackend()):
        meta, _ = hub.get_mla_metadata()
        hub.flash_mla_with_kvcache(q, k_cache, table, lens, 512, meta)
        kernel = dispatch.resolve(
            hub.explain_call(q, k_cache, table, lens, 512).choice, hub.devices()[0]
        ).kernel
        bound = DenseDecode(q, k_cache, table, lens, 0.04)
        times = {
            "dict lookup": median_us(lambda: lookup[(1, 2, 3)], calls),
            "pluggy hook call": median_us(lambda: manager.hook.answer(x=1), calls),
            "bound call": median_us(lambda: kernel.run(bound), calls),
            "hub call with SchedMeta": median_us(
                lambda: hub.flash_mla_with_kvcache(q, k_cache, table, lens, 512, meta), calls
            ),
            "hub call without": median_us(
                lambda: hub.flash_mla_with_kvcache(q, k_cache, table, lens, 512), calls
            ),
        }
        for size in range(1, 1001):
            rows = q[:1].expand(size, 1, 128, 576).contiguous()
            hub.flash_mla_with_kvcache(
                rows, k_cache, table[:1].expand(size, 2).contiguous(),
                lens[:1].expand(size).contiguous(), 512,
            )  # fmt: skip
    times["overhead with SchedMeta"] = times["hub call with SchedMeta"] - times["bound call"]
    times["overhead without"] = times["hub call without"] - times["bound call"]
    times["kernels bound after 1000 batch sizes"] = float(len(dispatch.bound_kernels))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20000, help="calls for each sample")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    times = measure(args.calls)
    if args.json:
        print(json.dumps(times, indent=2))
        return
    for name, value in times.items():
        unit = "" if name.startswith("kernels") else " us"
        print(f"{name:<40}{value:8.2f}{unit}")


if __name__ == "__main__":
    main()

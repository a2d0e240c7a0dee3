"""C1.13 and C5.3: the same again, alone or in company, a thousand times."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path

import torch

from flashmla_hub.conformance.checks.metadata import rows_of
from flashmla_hub.conformance.subject import Got
from flashmla_hub.conformance.trial import NOT_DETERMINISTIC, Trial, Wrong

BATCH_VARIANT = "row depends on the rest of the batch"
LEAKS = "memory grows with every call"

SOAK_CALLS = 1000
WARM_CALLS = 200
MAX_GROWTH = 8 << 20  # bytes over the calls after the warm-up; allocators settle within that


def determinism(trial: Trial) -> None:
    """The same call gives the same bits, other calls between."""
    trial.require()
    call = trial.call
    first = trial.run(call, **trial.metadata(call))
    trial.judge(call, first)
    between = rows_of(call, [trial.case.batch - 1])
    for _ in range(4):
        trial.run(call.with_(q=-call.q), **trial.metadata(call))
        trial.run(between, **trial.metadata(between))
        again = trial.run(call, **trial.metadata(call))
        trial.same_bits(first, again, "C1.13", NOT_DETERMINISTIC, "the same call again")


def batch_invariance(trial: Trial) -> None:
    """A row's bits do not depend on the batch's size, the row's place or its neighbours."""
    trial.require()
    call, batch = trial.call, trial.case.batch
    whole = trial.run(call)
    trial.judge(call, whole)
    trial.same_bits(whole, trial.run(call), "C1.13", NOT_DETERMINISTIC, "the batch again")
    orders = [[row] for row in range(batch)] + [list(range(batch))[::-1]]
    orders.append([0] * 5 + list(range(batch)))
    for order in orders:
        part = trial.run(rows_of(call, order))
        expected = Got(whole.out[order], whole.lse[order])
        trial.same_bits(expected, part, "C1.13", BATCH_VARIANT, f"rows {order} of the batch")


def soak(trial: Trial) -> None:
    """A thousand calls: the last has the bits of the first, and memory stays bounded."""
    trial.require()
    call = trial.call
    meta = trial.metadata(call)
    first = trial.run(call, **meta)
    trial.judge(call, first)
    start = 0
    for number in range(SOAK_CALLS):
        if number == WARM_CALLS:
            gc.collect()
            start = memory_in_use(call.device)
        last = trial.run(call, **meta)
    gc.collect()
    trial.same_bits(first, last, "C1.13", NOT_DETERMINISTIC, f"after {SOAK_CALLS} calls")
    growth = memory_in_use(call.device) - start
    if growth > MAX_GROWTH:
        raise Wrong("C5.3", f"memory grew by {growth / 2**20:.1f} MiB over "
                    f"{SOAK_CALLS - WARM_CALLS} calls, at most {MAX_GROWTH >> 20} MiB is noise",
                    LEAKS)  # fmt: skip


def memory_in_use(device: torch.device) -> int:
    """Bytes the process holds on ``device``."""
    module = getattr(torch, device.type, None)
    allocated = getattr(module, "memory_allocated", None)
    if device.type != "cpu" and allocated is not None:
        return int(allocated())
    # free memory that malloc keeps from earlier cases would take up a leak unseen
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

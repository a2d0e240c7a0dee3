"""How the schedule is set, by class of request: measured, shipped as data. Imports no CUDA.

None of this changes what is computed: the settings move the cuts between CTAs, and batch-invariant
kernels cut at places of their own. They still take the shipped ones only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, KernelKey
from flashmla_hub.tuning import ConfigFile, validated

from .geometry import variant_for


@dataclass(frozen=True, slots=True)
class Tuning:
    request_cost: int = 2  # what one more request costs a part, in blocks
    min_part_blocks: int = 1  # a part is given at least this many blocks; a power of two
    prefetch: int = 40  # mean blocks of a part from which on tiles prefetch into L2; 0: never
    # Most blocks (of all KV heads) of which L2 is told to evict them first, so that what it holds
    # need not be written back or lost. A block is 73,728 bytes, L2 680 of them.
    evict_first: int = 3400
    evict_half: int = 680  # most blocks of which only every second line is marked


# What the schedule's arithmetic holds for; a table from outside may say anything.
LIMITS = {
    "request_cost": (0, 1 << 16),
    "min_part_blocks": (1, 1 << 12),
    "prefetch": (0, 1 << 20),
    "evict_first": (0, 1 << 20),
    "evict_half": (0, 1 << 20),
}


def _parse(given: Mapping[str, Any]) -> Tuning:
    found = validated(Tuning, given, LIMITS)
    if found.min_part_blocks & (found.min_part_blocks - 1):
        raise ValueError(f"min_part_blocks is {found.min_part_blocks}, expected a power of two")
    return found


FILE = ConfigFile("hopper", 1, _parse)
SHIPPED = Path(__file__).with_name("tuned.json")
ROWS = (16, 32, 64, 128, 256)  # upper bounds of the classes of rows per KV head


def group(key: KernelKey, device: DeviceInfo) -> str:
    """The class of requests that share a setting: arch, rows per KV head, kind of page."""
    rows = (key.s_q if key.op == DENSE_DECODE else 1) * key.h_q // key.h_kv
    bound = next((f"rows<={n}" for n in ROWS if rows <= n), f"rows>{ROWS[-1]}")
    family = variant_for(key).family
    pages = "lists" if family.lists else "boxes" if family.k_maps else "gathered"
    return f"{device.arch} {bound} {pages}"


def tuning(key: KernelKey, device: DeviceInfo) -> Tuning:
    """What was measured on this machine, else what is shipped for the class."""
    name = group(key, device)
    measured = None if key.batch_invariant else FILE.get(name, device)
    return measured or _shipped().get(name) or Tuning()


def trials(key: KernelKey, device: DeviceInfo) -> dict[str, Tuning]:
    """The setting in force without measurement and its neighbours, by label."""
    base = _shipped().get(group(key, device)) or Tuning()
    changes: list[dict[str, int]] = [
        {},
        *({"request_cost": n} for n in (1, 2, 4)),
        *({"min_part_blocks": n} for n in (1, 2, 4)),
    ]
    if key.op == DENSE_DECODE:  # kernels over lists tell L2 nothing
        changes += [{"prefetch": n} for n in (0, 1, 24, 40, 64)]
        changes += [{"evict_first": n} for n in (0, 2560, 3400, 5120)]
    return {label(found): found for found in (replace(base, **change) for change in changes)}


def label(found: Tuning) -> str:
    return (
        f"cost {found.request_cost}, part {found.min_part_blocks}, prefetch {found.prefetch}, "
        f"evict first {found.evict_first}"
    )


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Tuning]:
    return FILE.read(SHIPPED)

"""Whether the installed Triton's Gluon has every name that the Hopper forms use.

Gluon is experimental: names come and go with minor versions. What a version lacks is found by
name, before a module that needs it is imported, so that the plain form can serve and the user is
told; a mistake of our own is not mistaken for a name that is missing.
"""

from __future__ import annotations

import functools
import importlib

GLUON = "triton.experimental.gluon"

# By module; "a|b" is one name or the other.
NAMES: dict[str, tuple[str, ...]] = {
    GLUON: ("jit", "language"),
    f"{GLUON}.language": (
        "BlockedLayout", "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout",
        "SliceLayout", "SwizzledSharedLayout", "allocate_shared_memory", "arange",
        "associative_scan", "barrier|thread_barrier", "constexpr", "convert_layout", "exp2",
        "float32", "full", "inline_asm_elementwise", "int32", "int64", "join", "load", "log2",
        "max", "maximum", "minimum", "num_programs", "pointer_type", "program_id",
        "shared_memory_descriptor", "static_range", "store", "sum", "warp_specialize", "where",
        "zeros",
    ),
    f"{GLUON}.language.shared_memory_descriptor": ("reinterpret|_reinterpret",),
    f"{GLUON}.language.nvidia.ampere": ("async_copy",),
    f"{GLUON}.language.nvidia.ampere.async_copy": (
        "async_load|async_copy_global_to_shared", "commit_group", "mbarrier_arrive", "wait_group",
    ),
    f"{GLUON}.language.nvidia.hopper": (
        "fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait",
    ),
    f"{GLUON}.language.nvidia.hopper.mbarrier": (
        "MBarrierLayout", "arrive", "expect", "init", "wait",
    ),
    f"{GLUON}.language.nvidia.hopper.tma": ("async_load|async_copy_global_to_shared",),
    f"{GLUON}.nvidia.hopper": ("TensorDescriptor",),
    "triton.language.extra.cuda": ("gdc_launch_dependents", "gdc_wait"),
}  # fmt: skip


@functools.cache
def missing() -> str | None:
    """What the installed Triton lacks ("triton.x has no y"), None where it has everything."""
    for place, names in NAMES.items():
        try:
            holder = _find(place)
        except (ImportError, AttributeError) as error:
            return str(error)
        for name in names:
            if not any(hasattr(holder, each) for each in name.split("|")):
                return f"{place} has no {' or '.join(name.split('|'))}"
    return None


def _find(place: str) -> object:
    """A module, or what a module has under the last part of ``place``."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        holder, _, name = place.rpartition(".")
        return getattr(importlib.import_module(holder), name)

"""Rewrites: small, exact changes that make a request fit a narrower port.

A declaration lists the rewrites it allows, in the order preferred. ``search`` applies those that
are needed, and the kernel bound for the narrower key is wrapped so that it serves the wider one.
No rewrite reads anything back to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flashmla_hub.backend import BoundKernel
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.legalize import layout, rows, widths
from flashmla_hub.request import KernelKey


@dataclass(frozen=True)
class Rewrite:
    """One kind of rewrite.

    ``narrow(key, declaration)`` is the key after it, or None where it is not needed or cannot
    help. ``wrap(kernel, wide, narrow)`` serves the wide key with the narrow key's kernel.
    ``cost(wide, narrow)`` says in words what it costs. ``penalty`` is taken off the rank.
    """

    name: str
    narrow: Callable[[KernelKey, Capabilities], KernelKey | None]
    wrap: Callable[[BoundKernel, KernelKey, KernelKey], BoundKernel]
    cost: Callable[[KernelKey, KernelKey], str]
    penalty: int = 1


@dataclass(frozen=True)
class Step:
    """An applied rewrite: its name, the keys before and after, and its cost in words."""

    name: str
    wide: KernelKey
    narrow: KernelKey
    cost: str

    def __str__(self) -> str:
        return f"{self.name}: {self.cost}"


REWRITES: dict[str, Rewrite] = {
    r.name: r
    for r in (
        Rewrite("own_out", layout.narrow_out, layout.OwnOut, layout.cost_out, 0),
        Rewrite("pad_heads", widths.narrow_heads, widths.PadHeads, widths.cost_heads),
        Rewrite("pad_topk", widths.narrow_topk, widths.PadTopk, widths.cost_topk),
        Rewrite("split_pages", layout.narrow_pages, layout.SplitPages, layout.cost_pages),
        Rewrite("contiguous_q", layout.narrow_q, layout.ContiguousQ, layout.cost_q),
        Rewrite("contiguous_kv", layout.narrow_kv, layout.ContiguousKV, layout.cost_kv, 40),
        Rewrite("fold_s_q", rows.narrow_s_q, rows.FoldSQ, rows.cost_s_q),
        Rewrite("repair_empty_rows", rows.narrow_empty, rows.RepairEmptyRows, rows.cost_empty, 0),
        Rewrite("lse_base", rows.narrow_lse, rows.LseBase, rows.cost_lse, 0),
    )
}

# Allowed to every declaration: no port has to write into memory as the caller laid it out.
_FREE = ("own_out",)

# These change no field of the key: a declaration says that they are always needed.
_ALWAYS: tuple[tuple[str, Callable[[Capabilities], bool], str], ...] = (
    ("lse_base", lambda c: c.lse_base == "2", "lse is in base 2"),
    ("repair_empty_rows", lambda c: not c.empty_rows, "rows with no visible key stay undefined"),
)  # fmt: skip


def search(key: KernelKey, declaration: Capabilities) -> tuple[list[str], tuple[Step, ...]]:
    """(reasons why it does not fit even so, rewrites that were needed and applied)."""
    steps: list[Step] = []
    current = key
    reasons = declaration.key_reasons(current)
    for name in (*_FREE, *declaration.rewrites):
        if not reasons:
            break
        if name not in REWRITES:
            return [f"rewrite {name!r} is not known: {' | '.join(REWRITES)}"], ()
        rewrite = REWRITES[name]
        narrow = rewrite.narrow(current, declaration)
        if narrow is None or narrow == current:
            continue
        steps.append(Step(name, current, narrow, rewrite.cost(current, narrow)))
        current = narrow
        reasons = declaration.key_reasons(current)
    if reasons:
        return declaration.key_reasons(key), ()
    for name, needed, reason in _ALWAYS:
        if not needed(declaration):
            continue
        if name not in declaration.rewrites:
            return [f"{reason}, and the rewrite {name} is not allowed"], ()
        # innermost: they mend what the kernel itself returns
        steps.append(Step(name, current, current, REWRITES[name].cost(current, current)))
    return [], tuple(steps)


def wrap(kernel: BoundKernel, steps: tuple[Step, ...]) -> BoundKernel:
    """Serve the first step's wide key with the kernel bound for the last step's narrow key."""
    for step in reversed(steps):
        kernel = REWRITES[step.name].wrap(kernel, step.wide, step.narrow)
    return kernel


def penalty(steps: tuple[Step, ...]) -> int:
    return sum(REWRITES[step.name].penalty for step in steps)

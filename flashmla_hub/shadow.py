"""The debug switch ``FLASHMLA_HUB_CHECK=N``: the first N calls of each kernel are run a second time
by the reference backend, and whoever differs, or writes into an input, is named.

It synchronises and copies every input, so it is for finding a culprit and for a rollout's first
minutes. Nothing is checked while a graph is captured.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import Call, SparsePrefill
from flashmla_hub.device import capturing
from flashmla_hub.errors import PluginError

REFERENCE = "torch"
RESULTS = ("out", "lse", "max_logits")
# Twice what contract C1.12 allows against the exact result, since both sides may be off by that.
_OUT_SHARE, _OUT_FLOOR = 2 * 2.01 / 128, 2 * 8e-4
_LSE_SHARE, _LSE_FLOOR = 2 * 8.01 / 65536, 2e-6


class Shadowed(BoundKernel):
    """``inner`` of backend ``name``, compared with ``reference`` in its first ``count`` calls."""

    def __init__(
        self, name: str, inner: BoundKernel, reference: BoundKernel, count: int,
        hazards: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.plans = inner.plans
        self._name, self._inner, self._reference = name, inner, reference
        self._turn, self._count = itertools.count(), count
        self._loose = set(hazards)

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        return self._inner.plan(block_table, cache_seqlens)

    def run(self, call: Any) -> Any:
        """As ``inner``.

        Raises:
            PluginError: naming the backend, and the result or the input that is wrong.
        """
        if capturing(call.q.device.type) or next(self._turn) >= self._count:
            return self._inner.run(call)
        inputs = {n: x for n, x in _tensors(call).items() if n not in RESULTS}
        before = {name: x.clone() for name, x in inputs.items()}
        apart = {name: None for name in (*RESULTS, "plan") if name in call._fields}
        want = self._reference.run(call._replace(**apart))
        got = self._inner.run(call)
        for name, x in inputs.items():
            if not _same_bits(x, before[name]):
                raise self._broken(f"the input {name} was written")
        names = ("out", "max_logits", "lse") if isinstance(call, SparsePrefill) else ("out", "lse")
        if not isinstance(got, tuple | list) or len(got) != len(names):
            raise self._broken(f"run returned {type(got).__name__}, expected {', '.join(names)}")
        for name, mine, theirs in zip(names, got, want, strict=True):
            self._compare(name, mine, theirs)
        return got

    def _compare(self, name: str, got: Any, want: Tensor) -> None:
        facts = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in (got, want)]
        if facts[0] != facts[1]:
            raise self._broken(f"{name} is {facts[0]}, expected {facts[1]}")
        if "approximate" in self._loose or (name != "out" and "lse_unverified" in self._loose):
            return
        x, y = got.double(), want.double()
        if name == "out":
            floor = _OUT_FLOOR * max(1.0, 10 * float(y.nan_to_num().abs().amax()))
            share = _OUT_SHARE
        else:
            floor, share = _LSE_FLOOR, _LSE_SHARE
        near = (x == y) | ((x - y).abs() <= floor + share * y.abs()) | (x.isnan() & y.isnan())
        if not near.all():
            at = tuple(int(i) for i in (~near).nonzero()[0])
            wrong = int((~near).sum())
            raise self._broken(
                f"{name}{list(at)} is {float(x[at]):g}, {REFERENCE} has {float(y[at]):g} "
                f"({wrong} of {near.numel()} differ)"
            )

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"FLASHMLA_HUB_CHECK: backend {self._name!r}: {what}")


def _tensors(call: Call) -> dict[str, Tensor]:
    values = zip(call._fields, call, strict=True)
    return {name: x for name, x in values if isinstance(x, Tensor)}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: unused slots may hold NaN."""
    if a.element_size() > 1:
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        return torch.equal(a.view(whole), b.view(whole))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))

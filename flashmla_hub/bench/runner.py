"""Runs the shapes: who takes part, one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub import api, registry
from flashmla_hub.backend import Backend
from flashmla_hub.bench.results import Row
from flashmla_hub.bench.shapes import D_V, Case, Shape, make_case
from flashmla_hub.bench.timing import DeviceClock
from flashmla_hub.decode import flash_mla_with_kvcache
from flashmla_hub.device import DeviceInfo
from flashmla_hub.metadata import get_mla_metadata

ISSUE_MAX_BATCH = 16  # host time does not depend on the batch: small ones measure it in no time
GRAPH_MAX_BATCH = 64  # above, a layer is so long that launches no longer matter
REFERENCE_RANK = 20  # backends below exist to be right, not fast: only when named


@dataclass(frozen=True)
class Contender:
    """A backend in the benchmark. ``peer``: somebody else's package, called in its own way."""

    backend: Backend
    peer: bool

    @property
    def name(self) -> str:
        return self.backend.name

    def make(self, case: Case) -> Callable[[], Tensor]:
        """One decode of ``case``, ready to be called again and again."""
        if self.peer:
            call = self.backend.peer_call(case)
            if call is not None:
                return call
        meta, _ = get_mla_metadata()

        def through_the_hub() -> Tensor:
            return flash_mla_with_kvcache(
                case.q, case.k_cache, case.block_table, case.cache_seqlens, D_V, meta, None,
                case.softmax_scale, case.shape.causal, backend=self.name,
            )[0]  # fmt: skip

        return through_the_hub


def contenders(device: DeviceInfo, names: Sequence[str], shape: Shape) -> list[Contender]:
    """The backends named, or every one that could serve ``shape`` on ``device`` here and now.

    Raises:
        InvalidRequestError, PluginError: a name is unknown or quarantined.
    """
    chosen = [registry.get(name) for name in names]
    if not names:
        decision = api.explain(shape.key, device=device)
        accepted = [c for c in decision.candidates if c.accepted]
        known = [(registry.get(c.backend), c.rank) for c in accepted]
        chosen = [b for b, rank in known if rank >= REFERENCE_RANK or _is_peer(b)]
    found = [Contender(b, _is_peer(b)) for b in chosen]
    return sorted(found, key=lambda c: c.peer)


def _is_peer(backend: Backend) -> bool:
    return type(backend).peer_call is not Backend.peer_call


def measure(
    shapes: Sequence[Shape],
    field: Sequence[Contender],
    clock: DeviceClock,
    *,
    seed: int,
    reps: int,
    layers: int,
) -> Iterator[Row]:
    """One row for each shape; a contender that fails has its error there and no time."""
    for shape in shapes:
        case = make_case(shape, seed, clock.device)
        row = Row(shape, case.flop, case.bytes)
        runs = {}
        first: Tensor | None = None
        for contender in field:
            try:
                run = contender.make(case)
                out = run().double()
                clock.synchronize()
            except Exception as error:
                row.errors[contender.name] = f"{type(error).__name__}: {error}"
                continue
            first = out if first is None else first
            row.difference[contender.name] = cosine_difference(out, first)
            runs[contender.name] = run
            del out
        if runs:
            row.us = clock.interleaved(runs, reps)
        for name, run in runs.items():
            if shape.batch <= ISSUE_MAX_BATCH:
                row.host_us[name] = clock.issue(run)
            if shape.batch <= GRAPH_MAX_BATCH:
                try:
                    row.graph_us[name] = clock.in_graph(run, layers, reps)
                except Exception as error:  # it plans on the host, or synchronises
                    row.errors[f"{name} in a graph"] = f"{type(error).__name__}: {error}"
                    clock.synchronize()
        yield row
        del case, runs, first
        clock.runtime.empty_cache()


def cosine_difference(x: Tensor, y: Tensor) -> float:
    """1 - 2 sum(xy) / sum(x^2 + y^2): 0 for equal tensors."""
    norm = (x * x + y * y).sum()
    return float(torch.where(norm > 0, 1 - 2 * (x * y).sum() / norm, 0.0))

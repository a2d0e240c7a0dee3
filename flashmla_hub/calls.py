"""What a public call does in eager mode: look its facts up, or check and resolve them once; run.

Everything validation looks at, and everything the choice depends on, is in the tuple of facts: a
call whose facts were seen before needs one dictionary lookup. The table of facts is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import identify, validation
from flashmla_hub.backend import BoundKernel
from flashmla_hub.device import capturing
from flashmla_hub.dispatch import Route, resolve
from flashmla_hub.errors import InvalidRequestError, NotSupportedError
from flashmla_hub.metadata import SchedMeta
from flashmla_hub.request import choice_key
from flashmla_hub.validation import Checked

MAX_CALLS = 4096

_calls: dict[Any, Prepared] = {}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked call and its route; no route where no row has room for a key."""

    checked: Checked
    route: Route | None

    @property
    def kernel(self) -> BoundKernel:
        assert self.route is not None
        return self.route.kernel


class Fast:
    """A SchedMeta's snapshot of the call it was bound by. Immutable."""

    __slots__ = ("block_table", "cache_seqlens", "facts", "kernel", "low_bits", "repeat", "scale")

    def __init__(
        self,
        facts: tuple[Any, ...],
        low_bits: int,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        prepared: Prepared,
    ) -> None:
        self.facts, self.low_bits = facts, low_bits
        self.block_table, self.cache_seqlens = block_table, cache_seqlens
        self.kernel = kernel = prepared.kernel
        self.scale = scale = prepared.checked.scale
        self.repeat = (
            None if kernel.plans else kernel.repeat(q, k_cache, block_table, cache_seqlens, scale)
        )


def tensor_facts(x: Any) -> Any:
    """What the checks look at in an optional tensor."""
    if not isinstance(x, Tensor):
        return x if x is None else type(x)
    return (x.shape, x.stride(), x.dtype, x.device, x.layout)


known = _calls.get


def prepare(facts: tuple[Any, ...], check: Any, q: Any, backend: str | None) -> Prepared:
    """Check a call with ``check()``, route it, and remember it under its ``facts``."""
    checked: Checked = check()
    if backend is not None and not isinstance(backend, str):
        raise InvalidRequestError("backend", repr(backend), "the name of a backend, or None")
    route = None
    if not checked.empty:
        choice = choice_key(checked.key, checked.batch, checked.capacity)
        device = identify.identify(q.device)
        route = resolve(choice, device, backend, checked.notes)
    prepared = Prepared(checked, route)
    if facts:
        if len(_calls) >= MAX_CALLS:
            _calls.clear()
        _calls[facts] = prepared
    return prepared


def plan_for(
    kernel: BoundKernel, meta: SchedMeta | None, table: Tensor | None, lens: Tensor | None
) -> Any:
    """The plan of a port whose plan depends on lengths (C2.3), made again when they change.

    Writes that torch does not count (``.data``, foreign kernels) need new metadata.
    """
    if not kernel.plans:
        return None
    if lens is not None and capturing(lens.device.type):
        raise NotSupportedError(
            "this backend", "graph capture", "a plan made on the host", "run outside capture"
        )
    stamp = _stamp(table, lens)
    if meta is not None and stamp is not None and meta.plan is not None:
        known, plan = meta.plan
        if known == (id(kernel), stamp):
            return plan
    plan = kernel.plan(table, lens)
    if meta is not None:
        meta.plan = ((id(kernel), stamp), plan)
    return plan


def _stamp(*tensors: Tensor | None) -> Any:
    try:
        return tuple(
            None if t is None else (t.data_ptr(), t._version, t.shape, t.stride()) for t in tensors
        )
    except RuntimeError:  # inference tensors count no versions: plan each time
        return None


def empty_decode(checked: Checked, q: Tensor, out: Tensor | None, lse: Tensor | None) -> Any:
    """A call whose rows have no room for a key (contract C1.10, C1.15): no launch of a backend."""
    key = checked.key
    if out is None:
        out = q.new_empty((q.shape[0], key.s_q, key.h_q, key.d_v))
    if lse is None:
        lse = q.new_empty((q.shape[0], key.h_q, key.s_q), dtype=torch.float32)
    return out.zero_(), lse.fill_(float("inf"))


def check_outputs(
    checked: Checked, q: Tensor, out: Any, lse: Any, inputs: dict[str, Tensor | None]
) -> None:
    """``out=`` (batch, s_q, h_q, d_v) and ``lse_out=`` (batch, h_q, s_q), apart from the inputs."""
    key, batch = checked.key, q.shape[0]
    if out is not None:
        validation.output("out", out, (batch, key.s_q, key.h_q, key.d_v), q.dtype, q)
    if lse is not None:
        shape = (batch, key.h_q, key.s_q)
        validation.output("lse_out", lse, shape, torch.float32, q)
    validation.no_overlap({"out": out, "lse_out": lse}, {"q": q, **inputs})


def contiguous_or_none(target: Tensor | None) -> Tensor | None:
    """What a kernel may write into directly; the rest is copied by ``store``."""
    return target if target is not None and target.is_contiguous() else None


def store(result: Tensor, target: Tensor | None) -> Tensor:
    """``result`` in the tensor that the caller gave, or itself."""
    if target is None or target is result:
        return result
    return target.copy_(result)

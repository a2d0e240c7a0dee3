"""What a public call does in eager mode: look its facts up, or check and resolve them once; run.

Everything validation looks at, and everything the choice depends on, is in the tuple of facts: a
call whose facts were seen before needs one dictionary lookup, and one that is like a recent call
not even its facts. Both tables are bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from flashmla_hub import config, identify, registry
from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import OUTPUTS, Arguments, facts_of
from flashmla_hub.device import capturing
from flashmla_hub.dispatch import Route, resolve
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.metadata import SchedMeta
from flashmla_hub.recent import Recent
from flashmla_hub.request import choice_key
from flashmla_hub.tracing import dual_level, needs_op
from flashmla_hub.validation import Checked

MAX_CALLS = 4096
A = TypeVar("A", bound=Arguments)

_calls: dict[Any, Prepared] = {}
_recent: Recent[Prepared] = Recent()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked call and its route; no route where no row has room for a key.

    ``negated``: an input is a lazily negated view, which is resolved before a backend sees it.
    """

    checked: Checked
    route: Route | None
    negated: bool = False

    @property
    def kernel(self) -> BoundKernel:
        assert self.route is not None
        return self.route.kernel


def prepare(args: A, check: Callable[[A], Checked]) -> tuple[Prepared | None, A]:
    """The checked call and its arguments as a kernel may read them.

    None for a call that is to go through the op of torch.compile instead.
    """
    facts = None
    if not dual_level():
        prepared = _recent.get(args)
        if prepared is not None:
            return prepared, args
        facts = facts_of(args)
    if facts is not None:
        facts = (facts, config.changed(), registry.loaded())
        prepared = _calls.get(facts)
        if prepared is not None:
            _recent.put(args, prepared)
            return prepared, resolved(args) if prepared.negated else args
    if needs_op(args):
        return None, args
    real = resolved(args)
    checked = check(real)
    route = None
    if not checked.empty:
        choice = choice_key(checked.key, checked.batch, checked.capacity)
        route = resolve(choice, identify.identify(args.q.device), args.backend, checked.notes)
    prepared = Prepared(checked, route, real is not args)
    if facts is not None and not (route is not None and route.passing):
        if len(_calls) >= MAX_CALLS:
            _calls.clear()
        _calls[facts] = prepared
    return prepared, real


def resolved(args: A) -> A:
    """The arguments with lazily negated inputs computed: kernels read memory as it is."""
    real: dict[str, Any] = {
        name: x.resolve_neg()
        for name, x in zip(args._fields, args, strict=True)
        if isinstance(x, Tensor) and x.is_neg() and name not in OUTPUTS
    }
    if not real:
        return args
    changed: Any = args._replace(**real)
    return changed  # type: ignore[no-any-return]


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


def empty_decode(checked: Checked, q: Tensor) -> tuple[Tensor, Tensor]:
    """A call whose rows have no room for a key (contract C1.10, C1.15): no launch of a backend."""
    key = checked.key
    out = q.new_zeros((q.shape[0], key.s_q, key.h_q, key.d_v))
    lse = q.new_full((q.shape[0], key.h_q, key.s_q), float("inf"), dtype=torch.float32)
    return out, lse


def writable(target: Tensor | None) -> bool:
    """Whether a kernel may write into the memory of ``target``: no lazily negated view, and no
    tensor of inference mode outside of it."""
    return target is not None and not (
        target.is_neg() or (target.is_inference() and not torch.is_inference_mode_enabled())
    )


def direct(target: Tensor | None) -> Tensor | None:
    """``out`` where a kernel may write into it as declarations have it (last dimension contiguous);
    None: the result is copied by ``store``."""
    return target if writable(target) and target.stride(-1) == 1 else None  # type: ignore[union-attr]


def store(result: Tensor, target: Tensor | None) -> Tensor:
    """``result`` in the tensor that the caller gave, or itself."""
    if target is None or target is result:
        return result
    if target.is_inference():
        with torch.inference_mode():
            return target.copy_(result)
    with torch.no_grad():
        return target.copy_(result)

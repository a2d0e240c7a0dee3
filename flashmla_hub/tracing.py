"""Calls on tensors that are not plain memory (contract C1.17): which are recorded or answered by
torch's dispatcher, and which no kernel can serve."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flashmla_hub.call import Arguments, tensors_of
from flashmla_hub.errors import InvalidRequestError

_functorch = torch._C._functorch
_jit = torch._C._get_tracing_state

modes = torch._C._len_torch_dispatch_stack
"""How many dispatch modes see the ops of this thread."""


def watched() -> bool:
    """Whether every op of this thread is seen by somebody: a dispatch mode (fake tensors, make_fx,
    a profiler of the user's) or torch.jit.trace."""
    return modes() > 0 or _jit() is not None


def dual_level() -> bool:
    """Whether forward-mode differentiation is on: a tensor may carry a tangent."""
    return forward_ad._current_level >= 0


def needs_op(args: Arguments) -> bool:
    """Whether the call goes through the op that torch.compile sees, since a tensor is not one in
    memory: fake, on the meta device, functionalised, or of a class that handles ops itself.

    Raises:
        InvalidRequestError: a tensor of a functorch transform, a nested or distributed one, one
            of another layout, or one with a tangent: nobody serves those.
    """
    found = False
    for name, x in tensors_of(args).items():
        if torch._is_functional_tensor(x):
            found = True
            continue
        _refuse(name, x)
        found = found or x.is_meta or _handles_ops(x)
    return found


def _refuse(name: str, x: Tensor) -> None:
    plain = "a plain tensor"
    if _functorch.is_functorch_wrapped_tensor(x):
        raise InvalidRequestError(
            name, "a tensor of a torch.func transform (vmap, grad, jvp)",
            f"{plain}: decode attention has no batching rule and no derivative",
        )  # fmt: skip
    if type(x).__name__ == "DTensor":
        raise InvalidRequestError(
            name, "a distributed tensor", f"{plain}: pass to_local(), or flashmla_hub.parallel"
        )
    if x.is_nested:
        raise InvalidRequestError(
            name, "a nested tensor", f"{plain}; rows of different lengths go by cache_seqlens"
        )
    if x.layout is not torch.strided:
        raise InvalidRequestError(f"{name}.layout", x.layout, "torch.strided")
    if dual_level() and forward_ad.unpack_dual(x).tangent is not None:
        raise InvalidRequestError(
            name, "a tensor with a tangent", f"{plain}: decode attention has no derivative"
        )


def _handles_ops(x: Tensor) -> bool:
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[comparison-overlap]

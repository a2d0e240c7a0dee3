"""C6.2: torch.compile traces the call whole, and does not start again for every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flashmla_hub
from flashmla_hub.conformance.checks.metadata import rows_of
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.trial import Trial, Wrong

TRACE = "does not trace whole"
FAKE = "fake outputs differ from real ones"
RECOMPILES = "recompiles for every batch"
MOST_COMPILES = 3  # one for the first batch, one for a batch that varies, one to spare

Function = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _compiled(trial: Trial, graphs: list[Any]) -> Function:
    """The call under torch.compile, with a backend that only keeps the graphs it is given."""
    d_v, name = trial.case.key.d_v, trial.subject.name

    def function(q: Tensor, kv: Tensor, table: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return flashmla_hub.flash_mla_with_kvcache(q, kv, table, lengths, d_v, backend=name)

    def keep(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=keep)  # type: ignore[no-any-return]


def _run(function: Function, call: Call) -> tuple[Tensor, Tensor]:
    assert call.block_table is not None and call.cache_seqlens is not None
    try:
        return function(call.q, call.kv, call.block_table, call.cache_seqlens)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise Wrong("C6.2", f"raised {type(error).__name__}: {text}", TRACE) from error


def fullgraph(trial: Trial) -> None:
    """One graph, right values, and fake outputs like the real ones."""
    trial.require_promise("torch_compile")
    call = trial.call
    graphs: list[Any] = []
    try:
        out, lse = _run(_compiled(trial, graphs), call)
    finally:
        torch._dynamo.reset()
    trial.judge(call, trial.run(call), clause="C6.2")
    trial.judge(call, type(trial.run(call))(out, lse), clause="C6.2")
    (output,) = next(n for n in graphs[0].graph.nodes if n.op == "output").args
    for name, node, real in zip(("out", "lse"), output, (out, lse), strict=True):
        fake = node.meta["example_value"]
        facts = [_facts(t) for t in (fake, real)]
        if facts[0] != facts[1]:
            raise Wrong("C6.2", f"{name}: fake {facts[0]}, real {facts[1]}", FAKE)


def batches(trial: Trial) -> None:
    """A changing batch compiles at most a few times."""
    trial.require_promise("torch_compile")
    graphs: list[Any] = []
    function = _compiled(trial, graphs)
    try:
        for batch in (2, 3, 4, 5, 7, 9):
            call = rows_of(trial.call, [row % trial.case.batch for row in range(batch)])
            out, lse = _run(function, call)
            trial.judge(call, type(trial.run(call))(out, lse), clause="C6.2")
    finally:
        torch._dynamo.reset()
    if len(graphs) > MOST_COMPILES:
        raise Wrong("C6.2", f"6 batch sizes compiled {len(graphs)} times, at most {MOST_COMPILES}",
                    RECOMPILES)  # fmt: skip


def _facts(tensor: Tensor) -> tuple[object, ...]:
    """Shape, dtype, and the strides of dimensions that have more than one place to go."""
    strides = [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    return tuple(tensor.shape), tensor.dtype, tuple(strides)

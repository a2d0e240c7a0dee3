"""C5: what is claimed, what is refused, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from flashmla_hub import InvalidRequestError
from flashmla_hub.capabilities import HAZARDS
from flashmla_hub.conformance.checks.values import values
from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.model import Outcome
from flashmla_hub.conformance.placing import place
from flashmla_hub.conformance.subject import BackendSubject
from flashmla_hub.conformance.trial import (
    SWALLOWS,
    WRONG_EXCEPTION,
    NotClaimed,
    Trial,
    Wrong,
    raising,
)


def harness(trial: Trial) -> None:
    """L0: the backend is there, ready, and its declarations can be read."""
    subject = trial.subject
    if not isinstance(subject, BackendSubject):
        return
    if subject.missing():
        raise Wrong("C5.2", f"cannot run here: {'; '.join(subject.missing())}")
    strange = subject.hazards() - set(HAZARDS)
    if strange:
        raise Wrong("C1.5", f"hazards {sorted(strange)}: expected some of {HAZARDS}")
    if not subject.version:
        raise Wrong("C5.2", "version is empty: evidence must say what was judged")


def refusal(trial: Trial) -> None:
    """C5.2 both ways: claimed by the backend itself, it works; else the backend refuses it."""
    if not trial.subject.has_back_door:
        _bare_function(trial)
        return
    if trial.claim.native:
        values(trial)
        return
    trial.refused(_as_call(trial))
    trial.notes.outcome = Outcome.REFUSED_OK


def _bare_function(trial: Trial) -> None:
    """A function without declarations may refuse by any exception, or must be right."""
    if trial.case.variant == "unknown":
        raise NotClaimed("a bare function takes tensors, not requests")
    try:
        values(trial)
    except (Wrong, NotClaimed) as error:
        if isinstance(error, Wrong) and error.outcome is not Outcome.ERROR:
            raise
        trial.notes.outcome = Outcome.REFUSED_OK
        trial.notes.reason = str(error)


def _as_call(trial: Trial) -> Call:
    """The case's call; for a request outside the contract, a plain one that carries its key."""
    if trial.case.variant != "unknown":
        return trial.call
    plain = replace(trial.case, key=type(trial.case.key)(), variant="")
    call = place(Inputs(plain), trial.subject.device)
    return replace(call, case=replace(plain, key=trial.case.key))


def invalid(trial: Trial) -> None:
    """C5.1: a wrong argument raises InvalidRequestError that names it, whatever the backend."""
    trial.require()
    argument, change = WRONG_ARGUMENTS[trial.case.variant]
    call = trial.call
    before = call.snapshot()
    more = change(call)
    error = raising(lambda: trial.subject.run(call, **more))
    if error is None:
        raise Wrong("C5.1", f"a wrong {argument} was accepted", SWALLOWS)
    if trial.subject.has_back_door:
        if not isinstance(error, InvalidRequestError):
            raise Wrong("C5.1", f"a wrong {argument} raised {error!r}, expected "
                        "InvalidRequestError", WRONG_EXCEPTION)  # fmt: skip
        if argument not in str(error):
            raise Wrong("C5.1", f"the message does not name {argument}: {error}", WRONG_EXCEPTION)
    trial.unchanged(call, before)
    trial.notes.outcome = Outcome.REFUSED_OK
    trial.notes.refused_by = "hub" if trial.subject.has_back_door else "backend"


def after_error(trial: Trial) -> None:
    """C5.3: a refusal and a wrong argument leave the backend able to serve."""
    trial.require()
    call = trial.call
    raising(lambda: trial.subject.run(call, softmax_scale=math.nan))
    out, lse = call.poisoned_outputs()
    unknown = replace(call, case=replace(call.case, key=call.case.key.with_(d_qk=72, d_v=64)))
    raising(lambda: trial.subject.run_unchecked(unknown, out, lse))
    values(trial)


def _wrong_out(call: Call) -> dict[str, Any]:
    out, _ = call.poisoned_outputs()
    return {"out": out[..., :-1]}


def _overlapping(call: Call) -> dict[str, Any]:
    d_v = call.case.key.d_v
    return {"out": call.q[..., :d_v]}


def _strided_inside(call: Call) -> dict[str, Any]:
    wide = call.q.repeat_interleave(2, dim=-1)
    return {"q": wide[..., ::2]}


def _stepped(call: Call) -> dict[str, Any]:
    assert call.cache_seqlens is not None
    return {"cache_seqlens": call.cache_seqlens[:-1]}


Change = Callable[[Call], dict[str, Any]]
# variant: the argument that the message must name, and the keywords that make it wrong
WRONG_ARGUMENTS: dict[str, tuple[str, Change]] = {
    "q_rank": ("q", lambda c: {"q": c.q[0]}),
    "q_dtype": ("q", lambda c: {"q": c.q.to(torch.int32)}),
    "kv_dtype": ("k_cache", lambda c: {"k_cache": c.kv.float()}),
    "kv_width": ("k_cache", lambda c: {"k_cache": c.kv[..., :-64]}),
    "table_dtype": ("block_table", lambda c: {"block_table": _table(c).long()}),
    "table_rows": ("block_table", lambda c: {"block_table": _table(c)[:1]}),
    "lengths_dtype": ("cache_seqlens", lambda c: {"cache_seqlens": _lengths(c).long()}),
    "lengths_shape": ("cache_seqlens", _stepped),
    "heads": ("h_", lambda c: {"k_cache": c.kv.expand(-1, -1, 3, -1)}),
    "scale_nan": ("softmax_scale", lambda c: {"softmax_scale": math.nan}),
    "head_dim_v": ("head_dim_v", lambda c: {"head_dim_v": 500}),
    "out_shape": ("out", _wrong_out),
    "out_overlaps": ("out", _overlapping),
    "dense_with_sink": ("attn_sink", lambda c: {
        "attn_sink": torch.zeros(c.case.key.h_q, device=c.device)}),
    "inner_stride": ("q", _strided_inside),
}  # fmt: skip


def _table(call: Call) -> torch.Tensor:
    assert call.block_table is not None
    return call.block_table


def _lengths(call: Call) -> torch.Tensor:
    assert call.cache_seqlens is not None
    return call.cache_seqlens

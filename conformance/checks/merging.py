"""C7: a port's states over lopsided parts merge into the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

import flashmla_hub
from flashmla_hub.conformance import oracle_numpy
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.subject import Got
from flashmla_hub.conformance.trial import Trial, Wrong, vectors, vectors_of_lse

MERGE_WRONG = "merged states differ from the whole"


def lopsided(trial: Trial) -> None:
    """The first page apart from the rest; several queries are folded to one per row first.

    On even parts a wrong LSE base hides: both weights are off by about the same factor.
    """
    whole = folded(trial.call)
    narrow = Trial(trial.subject, whole.case)
    narrow.call = whole
    narrow.require()
    size = trial.case.key.page_block_size
    table, lengths = whole.block_table, whole.cache_seqlens
    assert table is not None and lengths is not None
    parts = (
        whole.with_(cache_seqlens=lengths.clamp(max=size)),
        whole.with_(block_table=table[:, 1:], cache_seqlens=(lengths - size).clamp(min=0)),
    )
    gots = []
    for part in parts:
        got = narrow.run(part)
        narrow.judge(part, got)
        gots.append(got)
    merged = Got(*flashmla_hub.merge_states([g.out for g in gots], [g.lse for g in gots]))
    try:
        narrow.notes.metrics = None
        narrow.judge(whole, merged)
    except Wrong as error:
        raise Wrong("C7.1", error.reason, error.diagnosis or MERGE_WRONG, error.metrics) from error
    trial.notes.metrics = narrow.notes.metrics


def folded(call: Call) -> Call:
    """C7.2: s_q causal queries as rows of one query, each with the length it sees."""
    key = call.case.key
    assert call.block_table is not None and call.cache_seqlens is not None
    steps = torch.arange(key.s_q, dtype=torch.int32, device=call.device)
    lengths = call.cache_seqlens[:, None] - key.s_q + 1 + steps
    case = replace(call.case, key=key.with_(s_q=1, causal=False),
                   batch=call.case.batch * key.s_q)  # fmt: skip
    return call.with_(
        case=case,
        q=call.q.flatten(0, 1).unsqueeze(1).contiguous(),
        block_table=call.block_table.repeat_interleave(key.s_q, dim=0),
        cache_seqlens=lengths.flatten().clamp(min=0).contiguous(),
    )


def empty_parts(trial: Trial) -> None:
    """Parts without keys count for nothing, their out is never multiplied; all empty: 0, +inf."""
    trial.require()
    got = trial.run(trial.call)
    trial.judge(trial.call, got)
    nan = torch.full_like(got.out, float("nan"))
    for label, value in (("+inf", float("inf")), ("-inf", float("-inf")), ("nan", float("nan"))):
        none = torch.full_like(got.lse, value)
        both = flashmla_hub.merge_states([nan, got.out, nan], [none, got.lse, none])
        _same(trial, got, Got(*both), f"a part with lse {label}")
        out, total = flashmla_hub.merge_states([nan, nan], [none, none])
        if bool((out != 0).any()) or not bool(torch.isposinf(total).all()):
            raise Wrong("C7.1", f"all parts with lse {label}: expected out 0, lse +inf",
                        MERGE_WRONG)  # fmt: skip
    halves = [_array(vectors(got.out))] * 2, [_array(vectors_of_lse(got.lse))] * 2
    want_out, want_lse = oracle_numpy.merge(*halves)
    out, lse = flashmla_hub.merge_states([got.out] * 2, [got.lse] * 2)
    close = np.allclose(_array(vectors(out)), want_out, rtol=1e-2, atol=1e-3)
    if not close or not np.allclose(_array(vectors_of_lse(lse)), want_lse, rtol=1e-5, atol=1e-5):
        raise Wrong("C7.1", "two equal parts: expected the same out, lse + ln 2", MERGE_WRONG)


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _same(trial: Trial, expected: Got, got: Got, what: str) -> None:
    trial.same_bits(Got(expected.out, expected.out), Got(got.out, got.out), "C7.1", MERGE_WRONG,
                    what)  # fmt: skip
    if not torch.allclose(expected.lse, got.lse, rtol=1e-6, atol=1e-6):
        raise Wrong("C7.1", f"{what}: the merged lse changed", MERGE_WRONG)

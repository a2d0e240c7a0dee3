"""The verifier's oracle: numpy alone, written differently from the run's.

It never sees tensors, pages' places or block tables: it draws a row's keys by their meaning and
works on a whole row at once, keys past a query masked by -inf, sums in the log domain.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance import fp8
from flashmla_hub.conformance.bits import FLOAT32, FORMATS, decode
from flashmla_hub.conformance.inputs import Bits, Inputs
from flashmla_hub.conformance.model import Case
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL

F64 = NDArray[np.float64]


def row_outputs(inputs: Inputs, row: int) -> dict[str, F64]:
    """One row: ``out`` (s_q, h_q, d_v), ``lse``, ``max_logits`` (s_q, h_q), ``v_rms`` (s_q,).

    For sparse_prefill a row is one query and s_q is 1.
    """
    key = inputs.key
    q = values_of_q(inputs, row)
    groups = q.shape[0]
    if key.op == DENSE_DECODE:
        shared = dense_keys(inputs, row)
        keys = [shared] * groups
        seen = [visible(inputs.case, row, t) for t in range(groups)]
    else:
        keys = [sparse_keys(inputs, row, t) for t in range(groups)]
        seen = [len(k) for k in keys]
    parts = [_one_query(inputs, q[t], keys[t], seen[t]) for t in range(groups)]
    names = ("out", "lse", "max_logits", "v_rms")
    return {name: np.stack([part[i] for part in parts]) for i, name in enumerate(names)}


def outputs(inputs: Inputs, rows: Iterable[int] | None = None) -> dict[str, F64]:
    """The given rows' outputs stacked (all by default)."""
    numbers = range(inputs.case.batch) if rows is None else rows
    drawn = [row_outputs(inputs, row) for row in numbers]
    return {name: np.stack([r[name] for r in drawn]) for name in drawn[0]}


def values_of_q(inputs: Inputs, row: int) -> F64:
    """(s_q, h_q, d_qk)."""
    plain = inputs.q(row)
    if inputs.key.op == SPARSE_PREFILL:
        plain = plain[None]
    return decode(plain, inputs.kind)


def visible(case: Case, row: int, t: int) -> int:
    """Key j is seen iff j <= len - s_q + t: so many."""
    length = case.lengths[row]
    if not case.key.causal:
        return length
    return int(np.count_nonzero(np.arange(length) <= length - case.key.s_q + t))


def dense_keys(inputs: Inputs, row: int) -> F64:
    """(length, h_kv, d_qk) of a row, by logical position."""
    length = inputs.lengths[row]
    drawn = [values(inputs.tokens(page), inputs.case) for page in inputs.pool.table[row]]
    if not drawn:
        return np.zeros((0, inputs.key.h_kv, inputs.key.d_qk))
    return np.concatenate(drawn)[:length]


def sparse_keys(inputs: Inputs, row: int, t: int) -> F64:
    """(n, h_kv, d_qk) of the entries that count for one query, both caches."""
    picked = []
    for extra in (False, True) if inputs.key.extra_topk else (False,):
        size = inputs.sparse_pool(extra)[1]
        if inputs.key.op == SPARSE_PREFILL:
            size = 1 << 62
        pages: dict[int, F64] = {}
        for slot in inputs.counted(row, t, extra):
            page, offset = divmod(inputs.flat_token(slot), size)
            if page not in pages:
                pages[page] = values(inputs.sparse_tokens(page, extra), inputs.case)
            picked.append(pages[page][offset])
    if not picked:
        return np.zeros((0, inputs.key.h_kv, inputs.key.d_qk))
    return np.stack(picked)


def _one_query(inputs: Inputs, q: F64, keys: F64, seen: int) -> tuple[F64, F64, F64, F64]:
    key = inputs.key
    h_q, h_kv, d_v = key.h_q, key.h_kv, key.d_v
    if seen == 0:
        inf = np.full(h_q, np.inf)
        return np.zeros((h_q, d_v)), inf, -inf, np.zeros(())
    ratio = h_q // h_kv
    out, log_sum, top = np.zeros((h_q, d_v)), np.zeros(h_q), np.zeros(h_q)
    for kv in range(h_kv):
        mine = slice(kv * ratio, (kv + 1) * ratio)
        logit = np.matmul(keys[:, kv], q[mine].T) * inputs.scale  # (n, heads)
        logit[seen:] = -np.inf
        top[mine] = np.max(logit, axis=0)
        log_sum[mine] = np.logaddexp.reduce(logit, axis=0)
        share = np.exp(logit - log_sum[mine])
        out[mine] = share.T @ np.where(np.isfinite(keys[:, kv, :d_v]), keys[:, kv, :d_v], 0)
    if key.attn_sink:
        weight = 1 / (1 + np.exp(np.minimum(sink_values(inputs) - log_sum, 700)))
        out = out * np.where(np.isposinf(sink_values(inputs)), 0, weight)[:, None]
    used = keys[:seen, :, :d_v]
    return out, log_sum, top, np.asarray(np.sqrt(np.mean(used * used)))


def merge(outs: list[F64], lses: list[F64]) -> tuple[F64, F64]:
    """C7.1: parts' ``out`` (..., d_v) and ``lse`` (...) as one; empty parts have weight 0."""
    weights = [np.where(np.isfinite(lse), lse, -np.inf) for lse in lses]
    total = np.logaddexp.reduce(np.stack(weights), axis=0)
    empty = np.isneginf(total)
    result = np.zeros_like(outs[0])
    for out, weight in zip(outs, weights, strict=True):
        share = np.exp(np.where(np.isneginf(weight), -np.inf, weight - np.where(empty, 0, total)))
        result += np.where(share[..., None] > 0, out, 0) * share[..., None]
    return result, np.where(empty, np.inf, total)


def values(pattern: Bits, case: Case) -> F64:
    """float64 values of token bits in the case's format: (tokens, h_kv, d_qk)."""
    layout = fp8.LAYOUTS.get(case.key.kv_format)
    if layout:
        return fp8.decode_tokens(pattern.astype(np.uint8), layout)[:, None, :]
    return decode(pattern, FORMATS[case.key.dtype])


def sink_values(inputs: Inputs) -> F64:
    return decode(inputs.sink(), FLOAT32)

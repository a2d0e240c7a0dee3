"""Names the known mistake that reproduces a wrong output.

The marks an output itself carries (unwritten memory, NaN, empty rows) are read first; then each
mistake of the catalogue is recomputed on the wrong query vectors, until one agrees on all probed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flashmla_hub.conformance import tolerance
from flashmla_hub.conformance.catalogue import CATALOGUE
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.oracle_torch import Oracle, Outputs
from flashmla_hub.conformance.tolerance import Comparison

F64 = NDArray[np.float64]

PROBES = 4  # (row, query) pairs a mistake must reproduce
PROBED_HEADS = 16  # of each
SLACK = 1.5  # of the tolerance, as the port's own rounding comes on top

UNWRITTEN = "output not written"
ZERO_TIMES_NAN = "0 * NaN formed"
LSE_TRANSPOSED = "LSE transposed"
EMPTY_NAN = "empty row gives NaN"
EMPTY_MINUS_INF = "empty row's LSE is -inf"
EMPTY_ZERO = "empty row's LSE is 0"
EMPTY_OUT = "empty row's out is not 0"
LOW_PRECISION = "low precision"
NEGATIVE_LENGTH = "negative length not counted as 0"
OVER_CAPACITY = "length past the table's capacity read"
SHARED_PAGES = "shared pages read wrong"
HEADS_PAST = "heads past {} wrong"
WRAPPED = "offsets wrapped at 2^32 bytes"
FAR_BELOW = "logits far below zero lost"
POISON_READ = "reads past the length"
SPARSE_POISON_READ = "reads invalid entries"


@dataclass(frozen=True)
class Diagnosis:
    """``name`` '' where no known mistake reproduces the output."""

    name: str = ""
    clause: str = "C1.12"


def diagnose(
    call: Call, out: F64, lse: F64, want: Outputs, comparison: Comparison, unwritten: bool
) -> Diagnosis:
    """``out``, ``lse``: what the port gave, by query vector, of ``want``'s probe."""
    if unwritten:
        return Diagnosis(UNWRITTEN, "C1.9")
    bad = comparison.bad_vectors
    if not bad.any():
        return Diagnosis()
    if lengths := _lengths_out_of_range(call, want, bad):
        return lengths
    empty = np.isposinf(want.lse)
    if (bad & ~empty).sum() == 0:
        return _empty_rows(out, lse, bad)
    if (
        want.probe.whole
        and call.case.key.s_q > 1
        and not comparison.bad_out.any()
        and _transposed(lse, want)
    ):
        return Diagnosis(LSE_TRANSPOSED, "C1.8")
    if call.case.variant in ("below", "far_below"):
        return Diagnosis(FAR_BELOW, "C1.12")
    found = _catalogue(call, out, lse, want, bad & ~empty)
    return found or _by_place(call, want, bad) or _by_size(call, out, comparison)


def _lengths_out_of_range(call: Call, want: Outputs, bad: NDArray[np.bool_]) -> Diagnosis | None:
    """Wrong in just the rows whose length is below 0 or past the table (C1.15)."""
    if call.cache_seqlens is None or call.block_table is None:
        return None
    given = call.cache_seqlens.cpu().numpy()[list(want.probe.rows)]
    rows = np.asarray(bad.any(axis=(1, 2)))
    capacity = call.block_table.shape[1] * call.case.key.page_block_size
    if (given[rows] < 0).all():
        return Diagnosis(NEGATIVE_LENGTH, "C1.15")
    return Diagnosis(OVER_CAPACITY, "C1.15") if (given[rows] > capacity).all() else None


def _by_place(call: Call, want: Outputs, bad: NDArray[np.bool_]) -> Diagnosis | None:
    """Where the wrong vectors lie, when no mistake of the catalogue fits."""
    probed = np.array(want.probe.heads)
    heads = probed[bad.any(axis=(0, 1))]
    first = int(heads[0]) // 16 * 16
    if first and len(heads) > int((probed >= first).sum()) // 2:
        return Diagnosis(HEADS_PAST.format(first), "C1.1")
    rows = np.asarray(bad.any(axis=(1, 2)))
    if "shared_pages" in call.case.layout and rows[1:].any() and not rows[0]:
        return Diagnosis(SHARED_PAGES, "C1.3")
    return None


def _empty_rows(out: F64, lse: F64, bad: NDArray[np.bool_]) -> Diagnosis:
    wrong_lse, wrong_out = lse[bad], out[bad]
    if np.isnan(wrong_lse).any() or np.isnan(wrong_out).any():
        return Diagnosis(EMPTY_NAN, "C1.10")
    if np.isneginf(wrong_lse).all():
        return Diagnosis(EMPTY_MINUS_INF, "C1.10")
    if (wrong_lse == 0).all():
        return Diagnosis(EMPTY_ZERO, "C1.10")
    return Diagnosis(EMPTY_OUT if (wrong_out != 0).any() else "", "C1.10")


def _transposed(lse: F64, want: Outputs) -> bool:
    """(batch, s_q, h_q) memory handed out as (batch, h_q, s_q)."""
    batch, s_q, h_q = want.lse.shape
    wrong = want.lse.reshape(batch, h_q, s_q).transpose(0, 2, 1)
    return not np.array_equal(wrong, want.lse) and np.allclose(lse, wrong, rtol=1e-3, atol=1e-3)


def _catalogue(
    call: Call, out: F64, lse: F64, want: Outputs, bad: NDArray[np.bool_]
) -> Diagnosis | None:
    pairs = np.argwhere(bad.any(axis=-1))
    # spread over the wrong ones, the first among them
    chosen = [tuple(int(i) for i in pairs[n]) for n in
              np.unique(np.linspace(0, len(pairs) - 1, PROBES).astype(int))]  # fmt: skip
    for mistake in CATALOGUE:
        variants = mistake.variants(call)
        while True:
            try:
                oracle = next(variants)
                if all(_reproduces(oracle, out, lse, want, bad, b, t) for b, t in chosen):
                    return Diagnosis(mistake.name, mistake.clause)
            except StopIteration:
                break
            except (RuntimeError, IndexError):
                continue  # the mistake reads outside the memory of this very case
    return None


def _reproduces(
    oracle: Oracle, out: F64, lse: F64, want: Outputs, bad: NDArray[np.bool_], b: int, t: int
) -> bool:
    """Whether the bent oracle gives the port's wrong vectors of one query, and is itself wrong."""
    wrong = np.flatnonzero(bad[b, t])
    spread = np.unique(np.linspace(0, len(wrong) - 1, PROBED_HEADS).astype(int))
    heads, probe = wrong[spread], want.probe
    oracle.heads = torch.tensor([probe.heads[n] for n in heads])
    bent_out, bent_lse, _, rms = oracle.query(probe.rows[b], probe.queries[t])
    made_out, made_lse = bent_out.numpy(), bent_lse.numpy()
    case, v_rms = oracle.case, np.array(max(rms, want.v_rms[b, t]))

    def far(a: F64, b: F64, bound: F64) -> bool:
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= SLACK * bound)
        return not bool(same.all())

    out_bound = tolerance.out_bound(case, made_out, v_rms)
    lse_bound = tolerance.lse_bound(case, made_lse)
    if far(out[b, t][heads], made_out, out_bound) or far(lse[b, t][heads], made_lse, lse_bound):
        return False
    limit = 1 / SLACK
    return far(want.out[b, t][heads], made_out, limit * out_bound) or far(
        want.lse[b, t][heads], made_lse, limit * lse_bound
    )


def _by_size(call: Call, out: F64, comparison: Comparison) -> Diagnosis:
    """What the kind of error itself says, when no mistake of the catalogue fits."""
    if call.case.variant == "offset_4g_bytes":
        return Diagnosis(WRAPPED, "C1.14")
    poisoned = "poison" in call.case.layout
    if poisoned and np.isnan(out).any():
        if not comparison.bad_lse.any():
            return Diagnosis(ZERO_TIMES_NAN, "C1.5")
        return Diagnosis(SPARSE_POISON_READ if call.indices is not None else POISON_READ, "C1.5")
    metrics = comparison.metrics
    small = metrics.inf_mismatch == 0 and metrics.cos < 1e-3 and metrics.lse_ratio < 100
    return Diagnosis(LOW_PRECISION if small and metrics.out_ratio < 100 else "")

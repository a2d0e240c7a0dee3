"""The tolerances of C1.12 (and C3.2) and the comparison with the oracle; numpy alone.

The run compares whole tensors, the verifier recorded samples: both use the bounds from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance.model import Case, Metrics

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

COS_VECTOR = 1e-5
COS_TENSOR = 5e-6
LSE_STEP = 8.01 / 65536


def amplitude(v_rms: F64) -> F64:
    """a = max(1, rms(V) / 0.1) of C1.12."""
    return np.maximum(1.0, v_rms / 0.1)


def out_bound(case: Case, expected: F64, v_rms: F64) -> F64:
    """Largest |out - expected|, elementwise; ``v_rms`` broadcasts against ``expected``."""
    if case.key.dtype == "float32":
        return 1e-5 + 1e-5 * np.abs(expected)
    return 8e-4 * amplitude(v_rms) + 2.01 / 128 * np.abs(expected)


def lse_bound(case: Case, expected: F64) -> F64:
    """Largest |lse - expected|; also of max_logits. 0 where ``expected`` is infinite."""
    size = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    if case.key.dtype == "float32":
        return 1e-6 + 2e-6 * size
    bound = LSE_STEP * size if case.family == "extreme" else 1e-6 + LSE_STEP * size
    return 4 * bound if "free_scales" in case.layout else bound


@dataclass(frozen=True)
class Comparison:
    """``bad_*`` flag elements out of bounds, by query vector: out (b, t, h, d), lse (b, t, h).
    ``bad_cos`` (b, t, h) flags vectors; a tensor-wide excess alone sets only ``reason``."""

    metrics: Metrics
    bad_out: Flags
    bad_cos: Flags
    bad_lse: Flags
    reason: str

    @property
    def ok(self) -> bool:
        return not self.reason

    @property
    def bad_vectors(self) -> Flags:
        """(b, t, h): query vectors with anything wrong."""
        return np.asarray(self.bad_out.any(axis=-1) | self.bad_cos | self.bad_lse)


def excess(got: F64, expected: F64, bound: F64) -> tuple[F64, F64, Flags]:
    """(error, error / bound, bad) elementwise; inf must meet inf, nan is always bad."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got - expected))
        error = np.where(np.isnan(error), np.inf, error)
        ratio = np.where(error == 0, 0.0, error / bound)
    return error, ratio, np.asarray(ratio > 1)


def cosine_difference(got: F64, expected: F64) -> F64:
    """1 - 2 sum(xy) / sum(x^2 + y^2) over the last axis; 0 where both sides are 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        both = np.sum(got * got + expected * expected, axis=-1)
        cross = 2 * np.sum(got * expected, axis=-1)
        result = np.where(both == 0, 0.0, 1 - cross / np.where(both == 0, 1.0, both))
    return np.where(np.isnan(result), np.inf, result)


def compare(case: Case, out: F64, lse: F64, want_out: F64, want_lse: F64, v_rms: F64) -> Comparison:
    """Judge a call's outputs, all by query vector (see oracle_torch.Outputs)."""
    error, ratio, bad_out = excess(out, want_out, out_bound(case, want_out, v_rms[..., None, None]))
    lse_error, lse_ratio, bad_lse = excess(lse, want_lse, lse_bound(case, want_lse))
    cosine = cosine_difference(out, want_out)
    bad_cos = np.asarray(cosine > COS_VECTOR)
    whole = float(cosine_difference(out.reshape(-1), want_out.reshape(-1)))
    reason = ""
    where: tuple[str, tuple[int, ...], float, float] = ("", (), 0.0, 0.0)
    if bad_out.any():
        reason, where = (
            f"out: {int(bad_out.sum())} elements past the bound",
            _first_out(bad_out, want_out, out),
        )
    elif bad_cos.any():
        reason = f"out: {int(bad_cos.sum())} vectors with a cosine difference > {COS_VECTOR}"
        b, t, h = (int(i) for i in np.argwhere(bad_cos)[0])
        d = int(np.argmax(error[b, t, h]))
        where = ("out", (b, t, h, d), float(want_out[b, t, h, d]), float(out[b, t, h, d]))
    elif whole > COS_TENSOR:
        reason = f"out: cosine difference {whole:.2g} over the tensor > {COS_TENSOR}"
    if bad_lse.any():
        text = f"lse: {int(bad_lse.sum())} elements past the bound"
        if not reason:
            b, t, h = (int(i) for i in np.argwhere(bad_lse)[0])
            where = ("lse", (b, h, t), float(want_lse[b, t, h]), float(lse[b, t, h]))
        reason = f"{reason}; {text}" if reason else text
    if not where[0] and error.size:
        b, t, h, d = (int(i) for i in np.unravel_index(np.argmax(ratio), ratio.shape))
        where = ("out", (b, t, h, d), float(want_out[b, t, h, d]), float(out[b, t, h, d]))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(error == 0, 0.0, error / np.abs(want_out))
    odd = (np.isinf(lse) != np.isinf(want_lse)) | np.isnan(lse)
    metrics = Metrics(
        worst_abs=_top(error), worst_rel=_top(relative), out_ratio=_top(ratio), cos=_top(cosine),
        cos_tensor=whole, lse_abs=_top(lse_error), lse_ratio=_top(lse_ratio),
        inf_mismatch=int(odd.sum() + (~np.isfinite(out)).sum()),
        bad_elements=int(bad_out.sum() + bad_lse.sum()),
        tensor=where[0], at=where[1],
        expected=where[2] if where[0] else None, got=where[3] if where[0] else None,
    )  # fmt: skip
    return Comparison(metrics, bad_out, bad_cos, bad_lse, reason)


def _first_out(bad: Flags, want: F64, got: F64) -> tuple[str, tuple[int, ...], float, float]:
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return "out", at, float(want[at]), float(got[at])


def _top(array: F64) -> float:
    return float(np.max(array)) if array.size else 0.0

"""A passed case's inputs and recorded outputs, worked out again with numpy alone."""

from __future__ import annotations

import math

import numpy as np

from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.model import Case, Samples
from flashmla_hub.conformance.oracle_numpy import row_outputs
from flashmla_hub.conformance.report.schema import CaseEvidence
from flashmla_hub.conformance.samples import coordinate, recorded
from flashmla_hub.conformance.tolerance import F64, excess, lse_bound, out_bound
from flashmla_hub.conformance.verify.finding import Verification
from flashmla_hub.request import SPARSE_PREFILL

_SLACK = 1e-6  # two oracles differ in the last bits of float64


def expected_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The output tensors a values case records, and their shapes."""
    key, batch = case.key, case.batch
    if key.op == SPARSE_PREFILL:
        heads = (batch, key.h_q)
        return {"out": (*heads, key.d_v), "lse": heads, "max_logits": heads}
    return {"out": (batch, key.s_q, key.h_q, key.d_v), "lse": (batch, key.h_q, key.s_q)}


def check_form(case: Case, got: CaseEvidence, result: Verification) -> bool:
    """Tensors, shapes, positions and dtypes of the samples, without an oracle. False where the
    values cannot be compared."""
    comparable = True
    shapes = expected_shapes(case)
    named = {sample.tensor: sample for sample in got.samples}
    if len(named) != len(got.samples) or set(named) != set(shapes):
        result.add(
            "missing_samples",
            got.id,
            f"records {sorted(s.tensor for s in got.samples)}, expected {sorted(shapes)}",
        )
        return False
    for tensor, sample in named.items():
        where = f"{got.id} {tensor}"
        if sample.shape != shapes[tensor]:
            result.add("missing_samples", where, f"shape {sample.shape}, not {shapes[tensor]}")
            comparable = False
            continue
        index = recorded(case, tensor, sample.shape)
        if sample.index != index or len(sample.value) != len(index):
            result.add("sample_positions", where, "not the positions drawn for this case")
            comparable = False
            continue
        dtype = case.key.dtype if tensor == "out" else "float32"
        for at, value in zip(index, sample.value, strict=True):
            if not representable(value, dtype):
                result.add("sample_format", where, f"{value!r} at {at} is no {dtype}")
                break
    return comparable


def check_values(case: Case, got: CaseEvidence, result: Verification) -> None:
    """Inputs drawn anew, the recorded elements recomputed in float64 and compared."""
    inputs = Inputs(case)
    if got.input_digest != inputs.digest:
        result.add("input_digest", got.id, f"{got.input_digest}, expected {inputs.digest}")
    rows: dict[int, dict[str, F64]] = {}
    for sample in got.samples:
        worst = _check_sample(case, inputs, sample, rows, got, result)
        recorded = _recorded(got, sample.tensor)
        if recorded is not None and worst > recorded * (1 + _SLACK) + _SLACK:
            result.add(
                "metrics",
                f"{got.id} {sample.tensor}",
                f"largest error / tolerance recorded as {recorded:.6g}, a recorded output "
                f"alone has {worst:.6g}",
            )
        result.values += len(sample.index)
    result.recomputed += 1


def _recorded(got: CaseEvidence, tensor: str) -> float | None:
    if got.metrics is None or tensor == "max_logits":
        return None
    return got.metrics.out_ratio if tensor == "out" else got.metrics.lse_ratio


def _check_sample(
    case: Case, inputs: Inputs, sample: Samples, rows: dict[int, dict[str, F64]],
    got: CaseEvidence, result: Verification,
) -> float:  # fmt: skip
    """Compares one tensor's samples; the largest error / tolerance, one finding at most."""
    worst, said = 0.0, False
    for flat, value in zip(sample.index, sample.value, strict=True):
        at = coordinate(flat, sample.shape)
        if at[0] not in rows:
            rows[at[0]] = row_outputs(inputs, at[0])
        row = rows[at[0]]
        t = _query(case, sample.tensor, at)
        head = at[2] if sample.tensor == "out" and len(at) == 4 else at[1]
        if sample.tensor == "out":
            want = row["out"][t, head, at[-1]]
            bound = out_bound(case, want, row["v_rms"][t])
        else:
            want = row[sample.tensor][t, head]
            bound = lse_bound(case, want)
        _, ratio, bad = excess(np.float64(value), want, bound)  # type: ignore[arg-type]
        worst = max(worst, float(ratio))
        if bad and not said:
            said = True
            result.add(
                "sample_value",
                f"{got.id} {sample.tensor}{list(at)}",
                f"{value!r}, expected {float(want)!r} +- {float(bound):.3g}",
            )
    return worst


def _query(case: Case, tensor: str, at: tuple[int, ...]) -> int:
    if case.key.op == SPARSE_PREFILL:
        return 0
    return at[1] if tensor == "out" else at[2]


def representable(value: float, dtype: str) -> bool:
    """Whether a dtype holds ``value`` exactly; nan never counts."""
    if math.isnan(value):
        return False
    with np.errstate(over="ignore"):
        single = np.float32(value)
        if dtype == "float16":
            return float(np.float16(value)) == value
    if float(single) != value:
        return False
    return dtype != "bfloat16" or int(single.view(np.uint32)) & 0xFFFF == 0

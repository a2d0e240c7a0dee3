"""One case put to one subject: the call, the oracle, and the judgements that checks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashmla_hub import FlashMLAHubError, NotSupportedError
from flashmla_hub.conformance import diagnosis, samples
from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.memory import Call, unwritten
from flashmla_hub.conformance.model import Case, Metrics, Outcome, Samples
from flashmla_hub.conformance.oracle_torch import Oracle, Outputs
from flashmla_hub.conformance.placing import place
from flashmla_hub.conformance.subject import Claim, Got, Subject, out_keywords
from flashmla_hub.conformance.tolerance import Comparison, compare, excess, lse_bound
from flashmla_hub.request import SPARSE_PREFILL

F64 = NDArray[np.float64]

# diagnoses that a property itself gives, beside those of the catalogue
REFUSES_CLAIMED = "claims what it refuses"
ACCEPTS_UNCLAIMED = "accepts what it does not claim"
WRONG_EXCEPTION = "refuses with the wrong exception"
WRITES_REFUSING = "writes before it refuses"
WRITES_INPUT = "writes into an input"
ALIASES_INPUT = "output shares memory with an input"
OUT_IGNORED = "out= is not written in place"
WRONG_OUTPUT = "output of the wrong shape or dtype"
NOT_DETERMINISTIC = "not deterministic"
RAISES = "raises on what it claims"
EXITS = "ends the process"
TABLE_TAIL = "block table entries past a row's pages used"
INVALID_ENTRIES = "reads invalid entries"
SWALLOWS = "accepts a wrong argument"


class Wrong(Exception):
    """The case failed; what a CaseResult needs to say so."""

    def __init__(
        self, clause: str, reason: str, diagnosis: str = "", metrics: Metrics | None = None,
        outcome: Outcome = Outcome.FAILED,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.clause, self.reason, self.diagnosis = clause, reason, diagnosis
        self.metrics, self.outcome = metrics, outcome


class NotClaimed(Exception):
    """The subject does not claim the case and refuses it (or there is no way to ask)."""


@dataclass
class Notes:
    """What a check leaves behind for the CaseResult."""

    outcome: Outcome = Outcome.PASSED
    reason: str = ""
    refused_by: str = ""
    metrics: Metrics | None = None
    samples: tuple[Samples, ...] = ()


class Trial:
    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject, self.case = subject, case
        self.notes = Notes()
        self.inputs = Inputs(case)

    @functools.cached_property
    def call(self) -> Call:
        return place(self.inputs, self.subject.device)

    @functools.cached_property
    def want(self) -> Outputs:
        return Oracle(self.call).all()

    @functools.cached_property
    def claim(self) -> Claim:
        return self.subject.claim(self.case)

    # claims

    def require(self) -> None:
        """Go on only if the subject claims the case; else see that it refuses it itself."""
        if "poison" in self.case.layout and "needs_finite_cache" in self.subject.hazards():
            raise NotClaimed("declares the hazard needs_finite_cache")
        if self.claim.accepted:
            return
        if self.subject.has_back_door:
            self.refused(self.call)
        raise NotClaimed("; ".join(self.claim.reasons))

    def require_promise(self, name: str) -> None:
        if not self.subject.promises(name):
            raise NotClaimed(f"{name} is not declared")
        self.require()

    def refused(self, call: Call) -> None:
        """C5: past the hub's gate the backend itself refuses, before it writes anything."""
        out, lse = call.poisoned_outputs()
        before = call.snapshot()
        try:
            self.subject.run_unchecked(call, out, lse)
        except NotSupportedError:
            self.notes.refused_by = "backend"
        except Exception as error:
            raise Wrong("C5.1", f"put past the gate it raised {_said(error)}, expected "
                        "NotSupportedError", WRONG_EXCEPTION) from error  # fmt: skip
        else:
            raise Wrong("C5.2", f"ran {call.case.key.summary()}, which no declaration takes",
                        ACCEPTS_UNCLAIMED)  # fmt: skip
        if not (bool(unwritten(out).all()) and bool(unwritten(lse).all())):
            raise Wrong("C5.1", "wrote to the outputs before it refused", WRITES_REFUSING)
        self.unchanged(call, before)

    # calls

    def run(self, call: Call, **more: Any) -> Got:
        """A public call that must succeed; whatever it raises is the case's failure."""
        try:
            got = self.subject.run(call, **more)
            if call.q.device.type != "cpu":  # a simulated device's tensors are
                getattr(torch, call.q.device.type).synchronize()
        except NotImplementedError as error:
            if not self.subject.has_back_door:
                raise NotClaimed(str(error)) from error
            raise Wrong("C5.2", f"raised {_said(error)}", REFUSES_CLAIMED) from error
        except FlashMLAHubError as error:
            raise Wrong("C5.2", f"raised {_said(error)}", REFUSES_CLAIMED) from error
        except Exception as error:
            clause, name = self.blame(call, more)
            raise Wrong(clause, f"raised {_said(error)}", name, outcome=Outcome.ERROR) from error
        except SystemExit as error:
            raise Wrong("C5.3", f"raised {_said(error)}", EXITS,
                        outcome=Outcome.CRASHED) from error  # fmt: skip
        self.well_formed(call, got)
        return got

    def blame(self, call: Call, more: dict[str, Any]) -> tuple[str, str]:
        """(clause, diagnosis) of a call that raised: does it serve with its garbage cleaned out?"""
        cleaned = {
            name: tensor.clamp(0, call.kv.shape[0] - 1)
            for name in ("block_table", "indices", "extra_indices")
            if "poison" in self.case.layout and (tensor := getattr(call, name)) is not None
        }
        more = {k: v for k, v in more.items() if "metadata" not in k and k != "num_splits"}
        if not cleaned or raising(lambda: self.subject.run(call.with_(**cleaned), **more)):
            return "C5.2", RAISES
        return ("C1.3", TABLE_TAIL) if "block_table" in cleaned else ("C4.1", INVALID_ENTRIES)

    def metadata(self, call: Call) -> dict[str, Any]:
        """Fresh metadata as the keywords of a call."""
        try:
            meta, splits = self.subject.metadata(call)
        except Exception as error:
            raise Wrong("C2.1", f"get_mla_metadata raised {_said(error)}", RAISES,
                        outcome=Outcome.ERROR) from error  # fmt: skip
        return {"tile_scheduler_metadata": meta, "num_splits": splits}

    def run_in_place(self, call: Call, **more: Any) -> Got:
        """A call with poisoned ``out=`` and ``lse_out=``; every element must be written."""
        out, lse = call.poisoned_outputs()
        got = self.run(call, out=out, lse_out=lse, **more)
        if got.out.data_ptr() != out.data_ptr() and out.numel():
            raise Wrong("C1.8", "returned another tensor than out=", OUT_IGNORED)
        missing = [name for name, t in (("out", out), ("lse", got.lse))
                   if bool(unwritten(t).any())]  # fmt: skip
        if missing:
            where = torch.nonzero(unwritten(out if missing[0] == "out" else got.lse))[0].tolist()
            raise Wrong("C1.9", f"{missing[0]}{where} was not written",
                        diagnosis.UNWRITTEN)  # fmt: skip
        return got

    def takes_out(self) -> bool:
        return out_keywords(self.subject)

    # judgements

    def well_formed(self, call: Call, got: Got) -> None:
        """C1.8: shapes and dtypes; and no output is memory of an input."""
        key = self.case.key
        expected = (("out", got.out, call.out_shape, call.q.dtype),
                    ("lse", got.lse, call.lse_shape, torch.float32))  # fmt: skip
        for name, tensor, shape, dtype in expected:
            if not isinstance(tensor, Tensor):
                raise Wrong("C1.8", f"{name}: got {type(tensor).__name__}, expected a tensor",
                            WRONG_OUTPUT)  # fmt: skip
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                actual = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise Wrong("C1.8", f"{name}: got {actual}, expected {shape} {dtype}",
                            WRONG_OUTPUT)  # fmt: skip
        inputs = {s.untyped_storage().data_ptr() for s in call.storages.values() if s.numel()}
        for tensor in got.tensors():
            if tensor.numel() and tensor.untyped_storage().data_ptr() in inputs:
                raise Wrong("C1.11", f"an output of {key.op} shares memory with an input",
                            ALIASES_INPUT)  # fmt: skip

    def unchanged(self, call: Call, before: dict[str, Tensor]) -> None:
        changed = call.changed_since(before)
        if changed:
            raise Wrong("C1.11", f"changed: {', '.join(changed)}", WRITES_INPUT)

    def judge(self, call: Call, got: Got, want: Outputs | None = None, clause: str = "") -> None:
        """Compare with the oracle; keep metrics and samples of the case's own first call."""
        expected = want or (self.want if call is self.call else Oracle(call).all())
        result = self.compared(got, expected)
        metrics = _public(result.metrics, self.case, expected.probe)
        if self.notes.metrics is None:
            self.notes.metrics = metrics
            self.notes.samples = self.sampled(got)
        if not result.ok:
            self.fail(call, got, expected, result, metrics, clause)
        if not expected.probe.whole and not bool(torch.isfinite(got.out).all()):
            at = torch.nonzero(~torch.isfinite(got.out))[0].tolist()
            raise Wrong(clause or self.case.clauses[0], f"out{at} is not finite", metrics=metrics)
        if got.max_logits is not None:
            self.judge_max_logits(got.max_logits, expected)

    def compared(self, got: Got, want: Outputs) -> Comparison:
        out, lse = want.part(vectors(got.out)), want.part(vectors_of_lse(got.lse))
        return compare(self.case, out, lse, want.out, want.lse, want.v_rms)

    def fail(
        self, call: Call, got: Got, want: Outputs, result: Comparison, metrics: Metrics, clause: str
    ) -> None:
        marks = bool(unwritten(got.out).any()) or bool(unwritten(got.lse).any())
        found = diagnosis.diagnose(call, want.part(vectors(got.out)),
                                   want.part(vectors_of_lse(got.lse)), want, result,
                                   marks)  # fmt: skip
        reason = result.reason
        if metrics.tensor:
            reason += (f"; {metrics.tensor}{list(metrics.at)}: expected {metrics.expected:.6g}, "
                       f"got {metrics.got:.6g}")  # fmt: skip
        own = found.clause if found.name else self.case.clauses[0]
        raise Wrong(clause or own, reason, found.name, metrics)

    def judge_max_logits(self, got: Tensor, want: Outputs) -> None:
        values = want.part(got[:, None, :])
        bound = lse_bound(self.case, want.max_logits)
        _, _, bad = excess(values, want.max_logits, bound)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            expected, found = float(want.max_logits[at]), float(values[at])
            where = [want.probe.rows[at[0]], want.probe.heads[at[2]]]
            raise Wrong("C4.3", f"max_logits{where}: expected {expected:.6g}, got "
                        f"{found:.6g}", "max_logits wrong")  # fmt: skip

    def same_bits(self, first: Got, second: Got, clause: str, name: str, what: str) -> None:
        for label, a, b in (("out", first.out, second.out), ("lse", first.lse, second.lse)):
            if not torch.equal(bits(a), bits(b)):
                where = torch.nonzero(bits(a) != bits(b))[0].tolist()
                at = tuple(where)
                raise Wrong(clause, f"{what}, bitwise: {label}{where} was {float(a[at]):.9g}, "
                            f"then {float(b[at]):.9g}", name)  # fmt: skip

    def sampled(self, got: Got) -> tuple[Samples, ...]:
        named = [("out", got.out), ("lse", got.lse)]
        if got.max_logits is not None:
            named.append(("max_logits", got.max_logits))
        result = []
        for name, tensor in named:
            shape = tuple(int(n) for n in tensor.shape)
            index = samples.recorded(self.case, name, shape)
            flat = tensor.detach().cpu().contiguous().flatten()
            picked = flat[torch.tensor(index, dtype=torch.long)].double().tolist()
            result.append(Samples(tensor=name, shape=shape, index=index, value=tuple(picked)))
        return tuple(result)


def bits(tensor: Tensor) -> Tensor:
    """The tensor as integers, so that NaN equals itself and -0 differs from 0."""
    carrier = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(carrier)


def vectors(out: Tensor) -> Tensor:
    """out by query vector (batch, s_q, h_q, d_v); a query of sparse_prefill is a row."""
    return out[:, None] if out.dim() == 3 else out


def vectors_of_lse(lse: Tensor) -> Tensor:
    """(batch, s_q, h_q)."""
    return lse[:, None] if lse.dim() == 2 else lse.transpose(1, 2)


def raising(function: Callable[[], Any]) -> Exception | None:
    """What a call raises, None if it returns."""
    try:
        function()
    except Exception as error:
        return error
    return None


def _public(metrics: Metrics, case: Case, probe: samples.Probe) -> Metrics:
    """The coordinate as the op's own outputs have it: sparse_prefill has no s_q axis."""
    if not metrics.at:
        return metrics
    order = (probe.rows, probe.queries, probe.heads)
    if metrics.tensor == "lse":
        order = (probe.rows, probe.heads, probe.queries)
    at = [axis[n] for axis, n in zip(order, metrics.at, strict=False)] + list(metrics.at[3:])
    if case.key.op == SPARSE_PREFILL:
        del at[1 if metrics.tensor == "out" else 2]
    return replace(metrics, at=tuple(at))


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__

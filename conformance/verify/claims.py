"""The declared capabilities against the outcomes: neither may outrun the other.

Declarations travel as text (``subject.plain_claims``); read here are the fields that a request is
held against. Rules are code and travel by name: a declaration with rules may refuse more than it
says, and one with a field that this page does not know too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flashmla_hub.conformance.model import VALUES, Case, Outcome
from flashmla_hub.conformance.quoting import quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.verify.finding import Verification
from flashmla_hub.request import KernelKey

Claim = Mapping[str, Any]

_INTEGERS = ("s_q", "h_q", "h_kv", "page_block_size")
_OPTIONAL_INTEGERS = ("topk", "extra_topk", "extra_page_block_size")  # 0 is not asked of a set
_WORDS = {"dtype": "dtypes", "kv_format": "kv_formats", "causal": "causal",
          "kv_strides": "kv_strides", "q_strides": "q_strides"}  # fmt: skip
# since plugin protocol 2, each with its own neutral value: absent from older evidence
_NEWER_STRIDES = {"extra_kv_strides": "kv_strides", "out_strides": ""}
_ALIGNMENTS = ("q_alignment", "kv_alignment", "extra_kv_alignment", "out_alignment")
_FLAGS = ("topk_length", "attn_sink", "extra_topk_length", "batch_invariant")
_BESIDE = ("op", "devices", "head_dims", "alignment", "rules", "cuda_graph", "torch_compile",
           "plans_per_call", "empty_rows", "lse_base", "hazards", "rewrites")  # fmt: skip
_KNOWN = {
    *_NEWER_STRIDES,
    *_ALIGNMENTS,
    *_INTEGERS,
    *_OPTIONAL_INTEGERS,
    *_WORDS.values(),
    *_FLAGS,
    *_BESIDE,
}
# checks that need a promise of the declaration, beside its accepted values
_PROMISES = {"host_reads": "cuda_graph", "graph": "cuda_graph", "compile": "torch_compile",
             "compile_batches": "torch_compile"}  # fmt: skip
# rewrites of what comes out: they mend requests that a declaration takes; the last needs no leave
_AFTERWARDS = {"repair_empty_rows", "lse_base", "own_out"}
_FREE = {"own_out"}
_SPAN = re.compile(r"(?:>= (\d+)|(\d+)\.\.(\d+))(?:, multiples of (\d+))?")
_DEVICE = re.compile(r"([a-z0-9_*]+) \((.*)\)")


class Malformed(ValueError):
    """A declaration that no writer of this kit writes."""


def check(evidence: schema.Evidence, known: Mapping[str, Case], result: Verification) -> None:
    """What the claims and the outcomes say of each other."""
    if ":" in evidence.backend.name:
        if evidence.claims:
            result.add("claims", "claims", "declared, and a bare function declares nothing")
        return
    try:
        if not evidence.claims:
            raise Malformed("none, and a backend without a declaration serves nothing")
        if not any(on_device(c, evidence.device) for c in evidence.claims):
            raise Malformed(f"none is for the device {quoted(evidence.device.vendor)} "
                            f"{quoted(evidence.device.arch)}")  # fmt: skip
        for got in evidence.results:
            if got.id in known:
                _case(known[got.id], got, evidence, result)
    except Malformed as error:
        result.add("claims", "claims", str(error))


def _case(
    case: Case, got: schema.CaseEvidence, evidence: schema.Evidence, result: Verification
) -> None:
    claims = evidence.claims
    native = any(takes(claim, case.key) for claim in claims)
    measured = case.check == VALUES or bool(got.samples)
    promise = _PROMISES.get(case.check, "")
    if got.outcome is Outcome.PASSED:
        if promise and not any(claim.get(promise) is True for claim in claims):
            result.add("claims", got.id, f"passed, and no declaration promises {promise}")
        if measured and not got.rewrites and not native:
            result.add("claims", got.id, "passed without a rewrite, and no declaration takes it")
        changed = set(got.rewrites) - _AFTERWARDS
        if changed and native and not _may_refuse_more(claims):
            result.add("claims", got.id, "passed through a rewrite, and a declaration takes it")
        allowed = {name for claim in claims for name in _list(claim, "rewrites")}
        if extra := sorted(set(got.rewrites) - allowed - _FREE):
            result.add("claims", got.id, f"rewrites {quoted(extra)}, which none allows")
    elif case.check == VALUES and got.outcome is Outcome.NOT_CLAIMED:
        finite = "poison" in case.layout and any(
            "needs_finite_cache" in _list(claim, "hazards") for claim in claims
        )
        sure = any(takes(c, case.key) and not _may_refuse_more([c]) for c in claims)
        if sure and not finite:
            result.add("claims", got.id, "called not claimed, and a declaration takes it")
    elif (
        case.check == "refusal"
        and got.outcome is Outcome.REFUSED_OK
        and any(takes(c, case.key) and not _may_refuse_more([c]) for c in claims)
    ):
        result.add("claims", got.id, "refused, and a declaration takes it")


def _may_refuse_more(claims: list[Claim] | tuple[Claim, ...]) -> bool:
    return any(_list(claim, "rules") or set(claim) - _KNOWN for claim in claims)


def takes(claim: Claim, key: KernelKey) -> bool:
    """Whether a declaration's fields, its rules aside, take a request."""
    if claim.get("op") != key.op:
        return False
    if not all(getattr(key, n) in integers(_text(claim, n)) for n in _INTEGERS):
        return False
    for name in _OPTIONAL_INTEGERS:
        if getattr(key, name) and getattr(key, name) not in integers(_text(claim, name)):
            return False
    if not all(getattr(key, one) in _list(claim, many) for one, many in _WORDS.items()):
        return False
    if any(getattr(key, n) and claim.get(n) is not True for n in _FLAGS):
        return False
    for name, instead in _NEWER_STRIDES.items():
        accepted = _list(claim, name) if name in claim else []
        accepted = accepted or (_list(claim, instead) if instead else [])
        if accepted and getattr(key, name) not in accepted:
            return False
    return _aligned(claim, key) and [key.d_qk, key.d_v] in _list(claim, "head_dims")


def _aligned(claim: Claim, key: KernelKey) -> bool:
    """Bytes that every tensor has to be a multiple of; a declaration may name one for each."""
    whole = claim.get("alignment")
    if not any(name in claim for name in _ALIGNMENTS):
        return not isinstance(whole, int) or whole <= key.alignment
    needs = {name: claim.get(name) or whole for name in _ALIGNMENTS}
    return all(not isinstance(n, int) or n <= getattr(key, name) for name, n in needs.items())


def on_device(claim: Claim, device: schema.Device) -> bool:
    """Whether a declaration holds for the device."""
    for text in _list(claim, "devices"):
        if text == "any device":
            return True
        match = _DEVICE.fullmatch(str(text))
        if match is None:
            raise Malformed(f"devices: {quoted(text)}, expected 'vendor (archs)'")
        archs = match[2].split(" | ")
        if match[1] in ("*", device.vendor) and ("any arch" in archs or device.arch in archs):
            return True
    return False


class integers:
    """The set that a declaration prints as ``1 | 2``, ``>= 4`` or ``1..128, multiples of 16``."""

    def __init__(self, text: str) -> None:
        span = _SPAN.fullmatch(text)
        self.values: frozenset[int] | None = None
        try:
            if span is None:
                self.values = frozenset(int(word) for word in text.split(" | "))
                return
            self.low, self.high = int(span[1] or span[2]), int(span[3]) if span[3] else None
            self.step = int(span[4] or 1)
        except ValueError:
            raise Malformed(f"{quoted(text)}, expected a set of integers") from None
        if self.step < 1:
            raise Malformed(f"{quoted(text)}, expected a step >= 1")

    def __contains__(self, n: int) -> bool:
        if self.values is not None:
            return n in self.values
        return n >= self.low and (self.high is None or n <= self.high) and n % self.step == 0


def _text(claim: Claim, name: str) -> str:
    value = claim.get(name)
    if not isinstance(value, str):
        raise Malformed(f"{name}: {quoted(value)}, expected the text of a set")
    return value


def _list(claim: Claim, name: str) -> list[Any]:
    value = claim.get(name)
    if not isinstance(value, list):
        raise Malformed(f"{name}: {quoted(value)}, expected a list")
    return value

"""The mutants: what each does wrong, who has to notice at the latest, and what should be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flashmla_hub.backend import Backend
from flashmla_hub.conformance.model import Case
from flashmla_hub.conformance.mutants import behaviour, engines, limits, memory, values
from flashmla_hub.conformance.mutants.honest import HonestBackend
from flashmla_hub.conformance.mutants.kernel import HonestKernel

ANY = "*"  # of Mutant.optional: cases of every group, and none


@dataclass(frozen=True)
class Mutant:
    """``clauses``: the cases of these are run, up to ``level``, the lowest that should catch it.

    ``says``: texts of which the diagnosis holds one when it is right; all its parts, where it
    has several joined by `` & ``. ``optional``: the optional group that is needed to see it, ''
    for none.
    ``sees``: which cases can, where the mutant's own condition tells.
    """

    name: str
    clauses: tuple[str, ...]
    level: str
    says: tuple[str, ...]
    make: Callable[[], Backend]
    optional: str = ""
    sees: Callable[[Case], bool] | None = None

    def named(self, diagnosis: str) -> bool:
        return any(all(part in diagnosis for part in said.split(" & ")) for said in self.says)


def _backend(cls: type[HonestBackend], name: str) -> Backend:
    backend = cls()
    backend.name = name
    return backend


def _kernel(kernel: type[HonestKernel], name: str) -> Backend:
    return _backend(type(f"{kernel.__name__}Backend", (HonestBackend,), {"kernel": kernel}), name)


def _mutants() -> tuple[Mutant, ...]:
    found: list[Mutant] = []

    def wrong(
        what: type, clauses: str, level: str, *says: str, optional: str = "",
        sees: Callable[[Case], bool] | None = None,
    ) -> None:  # fmt: skip
        name = "mutant_" + "".join(f"_{c.lower()}" if c.isupper() else c for c in what.__name__)
        name = name.replace("__", "_")
        make = partial(_kernel if issubclass(what, HonestKernel) else _backend, what, name)
        found.append(Mutant(name, tuple(clauses.split()), level, says, make, optional, sees))

    wrong(values.LseBase2, "C1.8", "L1", "LSE in base 2")
    wrong(values.LseUnscaled, "C1.8", "L1", "LSE without the scale")
    wrong(values.LseNegated, "C1.8", "L1", "LSE negated")
    wrong(values.LseTransposed, "C1.8 C1.12", "L2", "LSE transposed")
    wrong(values.LseHalfPrecision, "C1.8", "L1", "LSE in half precision")
    wrong(values.ScaleIgnored, "C1.6", "L1", "softmax_scale ignored")
    wrong(values.ScaleTwice, "C1.6", "L1", "softmax_scale applied twice")
    wrong(values.ScaleOff5Percent, "C1.6", "L1", "softmax_scale off")
    wrong(values.ScaleDefaultOnly, "C1.6", "L1", "softmax_scale ignored")
    wrong(values.CausalTopLeft, "C1.7", "L2", "causal mask top-left aligned")
    wrong(values.CausalIgnored, "C1.7", "L2", "causal mask ignored")
    wrong(values.CausalOffByOne, "C1.7", "L2", "mask off by one")
    wrong(values.LastTokenDropped, "C1.7", "L1", "last token dropped")
    wrong(values.VLastColumns, "C1.2", "L1", "V taken from the last columns of K")
    wrong(values.RopeIgnored, "C1.2", "L1", "rope part ignored")
    wrong(values.HeadsInterleaved, "C1.1", "L1", "query heads grouped interleaved",
          optional="h_kv > 1")  # fmt: skip
    wrong(values.HeadsOver64, "C1.1", "L1", "heads past 64 wrong")
    wrong(values.SplitLost, "C1.12", "L1", "one split's weight lost")
    wrong(values.LastSplitLost, "C1.12", "L1", "one split's weight lost", "last page dropped")
    wrong(values.SplitsUnweighted, "C1.12", "L1", "splits merged without their weights")
    wrong(values.NoMaximum, "C1.12", "L2", "exp without the maximum taken off")
    wrong(values.Fp16Logits, "C1.12", "L1", "fp16 overflow", "logits rounded to half precision")
    wrong(values.Bf16Logits, "C1.12", "L1", "logits rounded to half precision")
    wrong(values.Fp8Weights, "C1.12", "L1", "low precision")
    wrong(values.Tf32, "C1.12", "L1", "inputs rounded to tf32 or bf16", optional="fp32")
    wrong(values.EmptyNan, "C1.10", "L2", "empty row gives NaN")
    wrong(values.EmptyMinusInf, "C1.10", "L2", "empty row's LSE is -inf")
    wrong(values.EmptyZero, "C1.10", "L2", "empty row's LSE is 0")
    wrong(values.Unwritten, "C1.9 C1.10", "L2", "output not written")
    wrong(values.OddHeadsUnwritten, "C1.9", "L2", "output not written")

    wrong(memory.LastPartialPageDropped, "C1.3", "L1", "last partial page dropped")
    wrong(memory.ReadsPastLength, "C1.5", "L2", "reads past the length")
    wrong(memory.PageBoundary, "C1.3", "L1", "last token dropped")
    wrong(memory.LastPageOfOneRow, "C1.3", "L1", "last page dropped",
          "last partial page dropped")  # fmt: skip
    wrong(memory.PageOrderIgnored, "C1.3", "L1", "page order ignored")
    wrong(memory.SharedPages, "C1.3", "L1", "shared pages read wrong")
    wrong(memory.TableTailUsed, "C1.3", "L2",
          "block table entries past a row's pages used")  # fmt: skip
    wrong(memory.ZeroTimesNan, "C1.5", "L2", "0 * NaN formed")
    wrong(memory.NegativeLengthHuge, "C1.15", "L2", "negative length not counted as 0")
    wrong(memory.WrapsAt31Bits, "C1.14", "L3", "offsets wrapped at 2^31 elements")
    wrong(memory.WrapsAt4GiB, "C1.14", "L3", "offsets wrapped at 2^32 bytes",
          "offsets wrapped at 2^31 elements")  # fmt: skip
    wrong(memory.SignedOverflow, "C1.14", "L3", "offsets wrapped at 2^31 elements")
    wrong(memory.PageStrideIgnored, "C1.2", "L2", "strides of the cache ignored")
    wrong(memory.TokenStrideIgnored, "C1.2", "L2", "strides of the cache ignored")
    wrong(memory.QueryStrideIgnored, "C1.1", "L2", "strides of q ignored")
    wrong(memory.DuplicatesMerged, "C4.1", "L4", "duplicate topk entries merged")
    wrong(memory.MinusOneIsSlot0, "C4.1", "L4", "index -1 read as slot 0")
    wrong(memory.OnlyMinusOneInvalid, "C4.1", "L4", "indices past the cache read")
    wrong(memory.TopkLengthIgnored, "C4.1", "L4", "topk_length ignored")
    wrong(memory.ExtraIgnored, "C4.1a", "L4", "extra cache ignored")
    wrong(memory.SinkIgnored, "C4.2", "L4", "attn_sink ignored")
    wrong(memory.SinkInLse, "C4.2", "L4", "attn_sink folded into LSE")
    wrong(memory.ScalesIgnored, "C3.2", "L4", "FP8 scales ignored")
    wrong(memory.MaxLogitsUnscaled, "C4.3", "L4", "max_logits wrong")

    wrong(behaviour.Nondeterministic, "C1.13", "L2", "not deterministic")
    wrong(behaviour.BatchVariant, "C1.13", "L1", "row depends on the rest of the batch",
          optional="batch_invariant")  # fmt: skip
    wrong(behaviour.WritesQuery, "C1.11", "L1", "writes into an input")
    wrong(behaviour.WritesTable, "C1.3", "L2", "writes into an input")
    wrong(behaviour.WritesCache, "C1.5", "L2", "writes into an input")
    wrong(behaviour.SyncsAndClaimsGraphs, "C1.4", "L3", "reads device values on the host",
          optional="no host reads")  # fmt: skip
    wrong(behaviour.PrintsPython, "C5.3", "L1", "prints on stdout")
    wrong(behaviour.PrintsNative, "C5.3", "L1", "prints on stdout")
    wrong(behaviour.ReturnsInputView, "C1.8", "L1", "output shares memory with an input")
    wrong(behaviour.Float32Out, "C1.8", "L1", "output of the wrong shape or dtype")
    wrong(behaviour.StaleLengths, "C2.3", "L1", "stale metadata")
    wrong(behaviour.OtherCallsPlan, "C2.2 C2.3", "L1", "metadata of another call used",
          "stale metadata")  # fmt: skip
    wrong(behaviour.Leaks, "C5.3", "L3", "memory grows with every call")
    wrong(behaviour.Exits, "C5.3", "L1", "ends the process")
    wrong(behaviour.AcceptsUnclaimed, "C5.2", "L1", "accepts what it does not claim")
    wrong(behaviour.AcceptsOtherPages, "C5.2", "L1", "accepts what it does not claim")
    wrong(behaviour.RefusesWithValueError, "C5.2", "L1", "refuses with the wrong exception")
    wrong(behaviour.RefusesWithAssert, "C5.2", "L1", "refuses with the wrong exception")
    wrong(behaviour.WritesThenRefuses, "C5.2", "L1", "writes before it refuses")
    wrong(behaviour.RefusesClaimedHeads, "C1.1", "L1", "claims what it refuses")
    wrong(behaviour.RefusesClaimedQueries, "C5.2", "L1", "claims what it refuses")
    wrong(behaviour.RefusesClaimedPages, "C5.2", "L1", "claims what it refuses")
    wrong(behaviour.RaisesOnClaimed, "C5.2", "L1", "raises on what it claims",
          "claims what it refuses")  # fmt: skip
    whole_axis(wrong)
    return tuple(found)


WHOLE_AXIS = "C5.2a C1.15 C4.1b C4.1a C1.16 C1.1 C1.1a C3.2 C1.7 C4.3"


def whole_axis(wrong: Callable[..., None]) -> None:
    """Mutants that are right on small shapes."""
    for limit in limits.LIMITS:
        wrong(limits.kernel_of(limit), WHOLE_AXIS, "L3", limit.says, optional=ANY,
              sees=limit.sees)  # fmt: skip
    wrong(engines.HeadOfListInvalid, "C4.1b", "L2", "invalid entries at the head of a list")
    wrong(engines.SecondCachePacked, "C4.1a", "L2", "second cache", optional=ANY)
    wrong(engines.ListOffsets31Bits, "C1.14 C4.1b", "L3", "offsets wrapped", optional=ANY)
    wrong(engines.FlatOffsets32Bits, "C1.14 C4.3", "L3", "offsets wrapped", optional=ANY)
    wrong(engines.QuantisedOffsets32Bits, "C1.14 C3.1", "L3", "offsets wrapped", optional=ANY)
    wrong(engines.EmptyRowsTimesQ, "C1.10", "L2", "NaN in q of rows without keys")
    wrong(engines.WantsFloat8, "C3.0a", "L2", "a uint8 cache", optional=ANY)
    wrong(engines.WantsUnsigned, "C3.0a", "L2", "an int8 cache", optional=ANY)
    wrong(engines.NullSlotRead, "C4.1b", "L2", "NaN in the null block", "reads invalid entries",
          "0 * NaN formed")  # fmt: skip
    wrong(engines.WideTablePlan, "C5.2a C1.3", "L2", "block tables wider than", optional=ANY)
    wrong(engines.EightQueries, "C5.2a C1.7", "L2", "more than 7 queries a row")
    wrong(engines.HeadMajorIgnored, "C1.1a C1.1", "L2", "head-major q", "strides of q ignored")
    wrong(engines.BatchStrideIgnored, "C1.1a C1.1", "L2", "batch-strided q",
          "strides of q ignored", "strided q")  # fmt: skip
    wrong(engines.ExpandedRows, "C1.1a C1.1", "L2", "expanded q", "strides of q ignored")
    wrong(engines.FiniteMask, "C1.12", "L2", "logits far below zero lost")
    wrong(engines.InferenceRefused, "C1.1a", "L2", "tensors of inference mode")
    wrong(engines.SparseBatchVariant, "C1.13", "L2", "row depends on the rest of the batch",
          optional="batch_invariant")  # fmt: skip
    wrong(engines.RecordsIgnored, "C1.16", "L2", "records between tokens", optional="odd strides")
    wrong(engines.FlatStrideIgnored, "C1.16", "L2", "strides of the cache ignored",
          "token-strided cache")  # fmt: skip


MUTANTS = _mutants()

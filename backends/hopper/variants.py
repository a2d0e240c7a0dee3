"""Which units a request needs, and the list of all there are (csrc/README.md)."""

from __future__ import annotations

from dataclasses import dataclass

from .units import Unit

DECODE = "fmh_dense_decode"
COMBINE = "fmh_dense_combine"
DYNAMIC_SHARED = {576: 231744, 512: 215360}  # bytes, by d_qk


@dataclass(frozen=True)
class Variant:
    """The compile-time choices of a dense decode kernel."""

    fp16: bool = False
    d_qk: int = 576
    gathered: bool = False  # K rows by cp.async instead of tensor maps: any page size
    batch_invariant: bool = False

    @property
    def decode(self) -> Unit:
        dtype = "fp16" if self.fp16 else "bf16"
        words = [dtype, f"d{self.d_qk}", "gathered" if self.gathered else "boxes"]
        words += ["invariant"] if self.batch_invariant else []
        return Unit(
            name="decode-" + "-".join(words),
            source="sm90/decode/dense/kernel.cu",
            defines=(
                f"FMH_FP16={self.fp16:d}",
                f"FMH_D_QK={self.d_qk}",
                f"FMH_PAGES={self.gathered:d}",
                f"FMH_BATCH_INVARIANT={self.batch_invariant:d}",
            ),
            kernels=(DECODE,),
        )

    @property
    def combine(self) -> Unit:
        words = ["fp16" if self.fp16 else "bf16"]
        words += ["invariant"] if self.batch_invariant else []
        return Unit(
            name="combine-" + "-".join(words),
            source="sm90/decode/combine.cu",
            defines=(f"FMH_FP16={self.fp16:d}", f"FMH_BATCH_INVARIANT={self.batch_invariant:d}"),
            kernels=(COMBINE,),
        )


def all_variants() -> list[Variant]:
    flags = (False, True)
    return [
        Variant(fp16, d_qk, gathered, invariant)
        for fp16 in flags
        for d_qk in DYNAMIC_SHARED
        for gathered in flags
        for invariant in flags
    ]


def all_units() -> list[Unit]:
    """Every instantiation, each once."""
    units = [unit for v in all_variants() for unit in (v.decode, v.combine)]
    return list(dict.fromkeys(units))

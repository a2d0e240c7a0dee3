"""Which kernels there are, and which units each of them needs (csrc/README.md).

A *family* is one source in csrc/: where K comes from, and what a request is. A *variant* is one
instantiation of a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from .units import Unit

DECODE = "fmh_dense_decode"
SPARSE = "fmh_sparse"
COMBINE = "fmh_combine"
# Bytes of dynamic shared memory, by (lists, d_qk).
DYNAMIC_SHARED = {
    (False, 576): 231744, (False, 512): 215360, (True, 576): 232192, (True, 512): 215808,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """``lists``: a request is a query token with lists of slots, else a row of the batch with a
    block table. ``k_maps``: K is read through tensor maps."""

    name: str
    source: str
    lists: bool = False
    k_maps: bool = False
    kv_format: str = "dense"
    head_dims: tuple[int, ...] = (576, 512)

    @property
    def maps(self) -> int:
        """Tensor maps that the kernel takes: q's, and in dense decode two of K."""
        return 1 if self.lists else 3

    @property
    def kernel(self) -> str:
        return SPARSE if self.lists else DECODE


BOXES = Family("dense-boxes", "sm90/dense/boxes.cu", k_maps=True)
PAGE_ROWS = Family("dense-rows", "sm90/dense/page_rows.cu")
LIST_ROWS = Family("sparse-rows", "sm90/sparse/list_rows.cu", lists=True)
FAMILIES = (BOXES, PAGE_ROWS, LIST_ROWS)


@dataclass(frozen=True)
class Variant:
    """The compile-time choices of a kernel."""

    family: Family = BOXES
    fp16: bool = False
    d_qk: int = 576
    batch_invariant: bool = False

    @property
    def main(self) -> Unit:
        return self._unit(
            f"{self.family.name}-{self._dtype}-d{self.d_qk}",
            self.family.source,
            self.family.kernel,
            f"FMH_D_QK={self.d_qk}",
        )

    @property
    def combine(self) -> Unit:
        return self._unit(
            f"{'sparse' if self.family.lists else 'dense'}-combine-{self._dtype}",
            "sm90/combine.cu",
            COMBINE,
            f"FMH_LISTS={self.family.lists:d}",
        )

    @property
    def shared_bytes(self) -> int:
        return DYNAMIC_SHARED[self.family.lists, self.d_qk]

    @property
    def _dtype(self) -> str:
        return "fp16" if self.fp16 else "bf16"

    def _unit(self, name: str, source: str, kernel: str, *defines: str) -> Unit:
        invariant = self.batch_invariant
        common = (f"FMH_FP16={self.fp16:d}", f"FMH_BATCH_INVARIANT={invariant:d}")
        return Unit(
            name=name + "-invariant" * invariant,
            source=source,
            defines=(*common, *defines),
            kernels=(kernel,),
        )


def all_variants() -> list[Variant]:
    flags = (False, True)
    return [
        Variant(family, fp16, d_qk, invariant)
        for family in FAMILIES
        for fp16, d_qk, invariant in product(flags, family.head_dims, flags)
    ]


def all_units() -> list[Unit]:
    """Every instantiation, each once."""
    units = [unit for v in all_variants() for unit in (v.main, v.combine)]
    return list(dict.fromkeys(units))

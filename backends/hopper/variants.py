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
QUANTISED = "fmh_quantised"
COMBINE = "fmh_combine"
# Bytes of dynamic shared memory, by (lists, d_qk).
DYNAMIC_SHARED = {
    (False, 576): 231744, (False, 512): 215360, (True, 576): 232192, (True, 512): 215808,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """``lists``: a request is a query token with lists of slots, else a row of the batch with a
    block table. ``k_maps``: K is read through tensor maps. ``rows``: query rows that a tile of a
    quantised family may have; the others have 64."""

    name: str
    source: str
    lists: bool = False
    k_maps: bool = False
    kv_format: str = "dense"
    head_dims: tuple[int, ...] = (576, 512)
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    rows: tuple[int, ...] = (64,)

    @property
    def quantised(self) -> bool:
        return self.kv_format != "dense"

    @property
    def maps(self) -> int:
        """Tensor maps that the kernel takes: q's, and in dense decode two of K."""
        return 0 if self.quantised else 1 if self.lists else 3

    @property
    def kernel(self) -> str:
        return QUANTISED if self.quantised else SPARSE if self.lists else DECODE


BOXES = Family("dense-boxes", "sm90/dense/boxes.cu", k_maps=True)
PAGE_ROWS = Family("dense-rows", "sm90/dense/page_rows.cu")
LIST_ROWS = Family("sparse-rows", "sm90/sparse/list_rows.cu", lists=True)


def _quantised(kv_format: str, head_dims: tuple[int, ...], lists: bool) -> Family:
    op = "sparse" if lists else "dense"
    # The bf16 part of v32 and model1 is multiplied as it is: by a bf16 query.
    half_part = kv_format in ("v32", "model1")
    return Family(
        name=f"{op}-{kv_format}",
        source=f"sm90/{op}/{kv_format}.cu",
        lists=lists,
        kv_format=kv_format,
        head_dims=head_dims,
        dtypes=("bfloat16",) if half_part else ("bfloat16", "float16"),
        rows=(16, 32, 64),
    )


QUANTISED_FAMILIES = (
    _quantised("v32", (576,), lists=False),
    _quantised("v32", (576,), lists=True),
    _quantised("model1", (512,), lists=True),
)
# In the sources, compiled by the tests, taken by no declaration: their layouts have no id yet.
UNDECLARED_FAMILIES = tuple(
    _quantised(kv_format, head_dims, lists)
    for kv_format, head_dims in (("v32_no_rope", (512,)), ("fp8", (576, 512)))
    for lists in (False, True)
)
FAMILIES = (BOXES, PAGE_ROWS, LIST_ROWS, *QUANTISED_FAMILIES)


@dataclass(frozen=True)
class Variant:
    """The compile-time choices of a kernel."""

    family: Family = BOXES
    fp16: bool = False
    d_qk: int = 576
    batch_invariant: bool = False
    rows: int = 64  # query rows of a tile

    @property
    def main(self) -> Unit:
        name, defines = f"{self.family.name}-{self._dtype}-d{self.d_qk}", [f"FMH_D_QK={self.d_qk}"]
        if self.family.quantised:
            name += f"-r{self.rows}"
            defines += [f"FMH_ROWS={self.rows}", f"FMH_SHARED_BYTES={self.shared_bytes}"]
        return self._unit(name, self.family.source, self.family.kernel, *defines)

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
        if self.family.quantised:
            return _quantised_shared_bytes(self.family.kv_format, self.d_qk, self.rows)
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


# Distance of two rows in shared memory, by layout and d_qk (csrc/sm90/quantised/format.h).
_ROW_PITCH = {
    ("v32", 576): 656, ("model1", 512): 592, ("v32_no_rope", 512): 528,
    ("fp8", 576): 592, ("fp8", 512): 528,
}  # fmt: skip


def _quantised_shared_bytes(kv_format: str, d_qk: int, rows: int) -> int:
    """As csrc/sm90/quantised/layout.h, which is compiled with the number and checks it: Q, P and
    what else has a fixed size, then a ring of slots of 16 tokens."""
    fixed = (d_qk // 64 + 2) * rows * 128 + 512 + 28 * rows + max(32 * rows, 576) + 128
    fixed = -(-fixed // 128) * 128
    slot = 16 * _ROW_PITCH[kv_format, d_qk]
    return fixed + min(24, (232448 - fixed) // slot) * slot


def all_variants() -> list[Variant]:
    flags = (False, True)
    return [
        Variant(family, dtype == "float16", d_qk, invariant, rows)
        for family in FAMILIES
        for dtype, d_qk, invariant, rows in product(
            family.dtypes, family.head_dims, flags, family.rows
        )
    ]


def all_units() -> list[Unit]:
    """Every instantiation, each once."""
    units = [unit for v in all_variants() for unit in (v.main, v.combine)]
    return list(dict.fromkeys(units))

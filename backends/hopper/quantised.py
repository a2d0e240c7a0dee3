"""The bound kernels over quantised caches: what they launch beside the others' argument structure.

They read q through its strides and rows of the cache as bytes, so no tensor map is made.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .bound import DenseKernel
from .list_bound import SparseDecodeKernel
from .prepare import Prepared, Slice, row_strides
from .prepare_lists import ListSlice, PreparedLists
from .tensormap import TensorMap


class QuantisedDenseKernel(DenseKernel):
    def _launch_slice(
        self,
        prepared: Prepared,
        part: Slice,
        addresses: tuple[int, int, int, int, int],
        k_address: int,
        k_maps: tuple[TensorMap, TensorMap] | None,
        stream: int,
        scratch: int,
    ) -> None:
        q, table, lens, out, lse = addresses
        q_row, table_row, out_row, lse_row = (n * part.start for n in prepared.row_bytes)
        buffers = self._arguments.buffers
        buffers.pack(
            k_address, table + table_row, lens + 4 * part.start, out + out_row, lse + lse_row,
            scratch, scratch + part.partial_stats, part.part_info and scratch + part.part_info,
        )  # fmt: skip
        buffers.tail[:] = part.tail
        buffers.pack_quantised(q + q_row, 0, 0, *prepared.q_stride)
        self._fire(buffers, prepared.ctas, part.combine_ctas, stream)


class QuantisedSparseKernel(SparseDecodeKernel):
    def _give_query(
        self, buffers: Any, prepared: PreparedLists, part: ListSlice, q: Tensor, address: int
    ) -> None:
        buffers.pack_quantised(address, 0, 0, *row_strides(q.shape, q.stride()))

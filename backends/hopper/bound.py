"""The bound dense decode kernel: from tensors to two launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, empty_like

from flashmla_hub.call import DenseDecode

from .kernel import HopperKernel, as_they_are, shape_only, strides_fit, usable
from .prepare import Prepared, Slice, Tensors, prepare
from .tensormap import TensorMap


class CallForm(NamedTuple):
    """All that calls of equal shapes and strides share."""

    prepared: Prepared
    out_like: Tensor
    lse_like: Tensor


class DenseKernel(HopperKernel):
    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        arguments = call[:7]
        if self._runtime.current_device() == self._index:
            return self._run(*arguments)
        with self._runtime.guard(self._index):
            return self._run(*arguments)

    def repeat(
        self, q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor, scale: float
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        form = self._form(q, k_cache, block_table, scale, None, None)
        if form is None:
            return None
        current, index, launch = self._runtime.current_device, self._index, self._launch_all

        def again(
            q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor
        ) -> tuple[Tensor, Tensor]:
            if current() != index:
                return self.run(DenseDecode(q, k_cache, block_table, cache_seqlens, scale))
            out, lse = empty_like(form.out_like), empty_like(form.lse_like)
            launch(form.prepared, q, k_cache, block_table, cache_seqlens, out, lse)
            return out, lse

        return again

    def _run(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if out is not None and not strides_fit(out):
            result, lse = self._run(
                q, k_cache, block_table, cache_seqlens, softmax_scale, None, lse
            )
            return out.copy_(result), lse
        form = self._form(q, k_cache, block_table, softmax_scale, out, lse)
        if form is None:
            q, softmax_scale = usable(q, softmax_scale)
            return self._run(q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse)
        if out is None:
            out = empty_like(form.out_like)
        if lse is None:
            lse = empty_like(form.lse_like)
        self._launch_all(form.prepared, q, k_cache, block_table, cache_seqlens, out, lse)
        return out, lse

    def _form(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
    ) -> CallForm | None:
        """None if the kernel cannot take q and the scale as they are."""
        # One look-up by everything that shapes the launch; addresses are all that is left.
        name = (
            q.shape, q.stride(), k_cache.shape[0], k_cache.stride(),
            block_table.shape[1], block_table.stride(0), softmax_scale,
            out is not None and out.stride(), lse is not None and lse.stride(),
        )  # fmt: skip
        found: CallForm | None = self._forms.get(name)
        if found is None and as_they_are(q, softmax_scale):
            prepared = self._prepare(q, k_cache, block_table, softmax_scale, out, lse)
            found = CallForm(
                prepared,
                shape_only(q.dtype, prepared.out_shape, q),
                shape_only(torch.float32, prepared.lse_shape, q),
            )
            self._forms.put(name, found)
        return found

    def _prepare(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
    ) -> Prepared:
        _, s_q, h_q, _ = q.shape
        d_v = self.key.d_v
        call = Tensors(
            q_shape=q.shape,
            q_stride=q.stride(),
            pages=k_cache.shape[0],
            k_stride=k_cache.stride(),
            table_width=block_table.shape[1],
            table_stride=block_table.stride(0),
            out_stride=(s_q * h_q * d_v, h_q * d_v, d_v, 1) if out is None else out.stride(),
            lse_stride=(h_q * s_q, s_q, 1) if lse is None else lse.stride(),
        )
        return prepare(
            self.key,
            self._variant.family.k_maps,
            self._multiprocessors,
            self._tuning,
            call,
            softmax_scale,
        )

    def _launch_all(
        self,
        prepared: Prepared,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        k_address = k_cache.data_ptr()
        k_maps = self._k_maps(prepared, k_address)
        addresses = (
            q.data_ptr(), block_table.data_ptr(), cache_seqlens.data_ptr(),
            out.data_ptr(), lse.data_ptr(),
        )  # fmt: skip
        runtime = self._runtime
        stream = runtime.stream(self._index)
        for part in prepared.slices:
            if not part.scratch:
                self._launch_slice(prepared, part, addresses, k_address, k_maps, stream, 0)
                continue
            # Freed once launched: the allocator hands it to later work of this stream only.
            scratch = runtime.allocate(part.scratch, stream)
            try:
                self._launch_slice(prepared, part, addresses, k_address, k_maps, stream, scratch)
            finally:
                runtime.free(scratch)

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
        if start := part.start:
            q_row, table_row, out_row, lse_row = prepared.row_bytes
            q, table, lens = q + start * q_row, table + start * table_row, lens + start * 4
            out, lse = out + start * out_row, lse + start * lse_row
        q_map = self._map("q", part.q_form, q)
        left, right = k_maps or (q_map, q_map)
        buffers = self._arguments.buffers
        buffers.pack(
            k_address, table, lens, out, lse,
            scratch, scratch + part.partial_stats, part.part_info and scratch + part.part_info,
        )  # fmt: skip
        buffers.tail[:] = part.tail
        pointers = buffers.main_pointers
        pointers[0], pointers[1], pointers[2] = q_map.address, left.address, right.address
        self._fire(buffers, prepared.ctas, part.combine_ctas, stream)

    def _k_maps(self, prepared: Prepared, address: int) -> tuple[TensorMap, TensorMap] | None:
        forms = prepared.k_forms
        if forms is None:
            return None
        name = (address, forms)
        found: tuple[TensorMap, TensorMap] | None = self._maps.get(name)
        if found is None:
            left, right = forms
            found = self._map("k_cache", left, address), self._map("k_cache", right, address)
            self._maps.put(name, found)
        return found

"""The bound sparse kernels: from tensors to launches. Prefill is decode over rows of one query
token each, whose results differ in shape only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, empty_like

from flashmla_hub.call import SparseDecode, SparsePrefill

from .kernel import HopperKernel, as_they_are, shape_only, strides_fit, usable
from .launch import Buffers
from .prepare_lists import (
    NONE,
    Cache,
    ListSlice,
    ListTensors,
    PreparedLists,
    lse_strides,
    out_strides,
    prepare_lists,
)


class Lists(NamedTuple):
    """A cache (pages, tokens, KV heads, d), its lists (rows, s_q, KV heads, width) and how many
    entries count (rows,)."""

    cache: Tensor
    slots: Tensor
    counts: Tensor | None

    def facts(self) -> tuple[Any, ...]:
        cache, slots = self.cache, self.slots
        return cache.shape, cache.stride(), slots.shape, slots.stride(), self.counts is not None

    def form(self) -> Cache:
        page, token, head, _ = self.cache.stride()
        row, query, kv_head, _ = self.slots.stride()
        return Cache(
            pages=self.cache.shape[0],
            page_block_size=self.cache.shape[1],
            stride=(page, token, head),
            width=self.slots.shape[3],
            slots_stride=(row, query, kv_head),
            counted=self.counts is not None,
        )


class ListForm(NamedTuple):
    """All that calls of equal shapes and strides share."""

    prepared: PreparedLists
    out_like: Tensor
    lse_like: Tensor


class ListKernel(HopperKernel):
    """``attend`` for both ops; q (rows, s_q, h_q, d), out alike, lse (rows, h_q, s_q)."""

    def attend(
        self,
        q: Tensor,
        first: Lists,
        second: Lists | None,
        sink: Tensor | None,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        max_logits: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``max_logits`` has the strides of ``lse``."""
        if self._runtime.current_device() == self._index:
            return self._attend(q, first, second, sink, softmax_scale, out, lse, max_logits)
        with self._runtime.guard(self._index):
            return self._attend(q, first, second, sink, softmax_scale, out, lse, max_logits)

    def _attend(
        self,
        q: Tensor,
        first: Lists,
        second: Lists | None,
        sink: Tensor | None,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        max_logits: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if out is not None and not strides_fit(out):
            result, lse = self._attend(q, first, second, sink, softmax_scale, None, lse, max_logits)
            return out.copy_(result), lse
        name = (
            q.shape, q.stride(), first.facts(), second and second.facts(), softmax_scale,
            out is not None and out.stride(), lse is not None and lse.stride(),
        )  # fmt: skip
        form: ListForm | None = self._forms.get(name)
        if form is None:
            if not as_they_are(q, softmax_scale):
                q, softmax_scale = usable(q, softmax_scale)
                return self._attend(q, first, second, sink, softmax_scale, out, lse, max_logits)
            form = self._prepare(q, first, second, softmax_scale, out, lse)
            self._forms.put(name, form)
        if out is None:
            out = empty_like(form.out_like)
        if lse is None:
            lse = empty_like(form.lse_like)
        runtime = self._runtime
        stream = runtime.stream(self._index)
        tensors = (q, first, second, sink, out, lse, max_logits)
        for part in form.prepared.slices:
            # Freed once launched: the allocator hands it to later work of this stream only.
            scratch = runtime.allocate(part.scratch, stream) if part.scratch else 0
            try:
                self._launch_slice(form.prepared, part, tensors, stream, scratch)
            finally:
                if scratch:
                    runtime.free(scratch)
        return out, lse

    def _prepare(
        self,
        q: Tensor,
        first: Lists,
        second: Lists | None,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
    ) -> ListForm:
        rows, s_q, h_q, d = q.shape
        d_v = self.key.d_v
        call = ListTensors(
            q_shape=(rows, s_q, h_q, d),
            q_stride=q.stride(),
            caches=(first.form(), NONE if second is None else second.form()),
            out_stride=out_strides(s_q, h_q) if out is None else out.stride(),
            lse_stride=lse_strides(s_q, h_q) if lse is None else lse.stride(),
        )
        prepared = prepare_lists(self.key, self._multiprocessors, self._tuning, call, softmax_scale)
        return ListForm(
            prepared,
            shape_only(q.dtype, (rows, s_q, h_q, d_v), q),
            shape_only(torch.float32, (rows, h_q, s_q), q),
        )

    def _launch_slice(
        self,
        prepared: PreparedLists,
        part: ListSlice,
        tensors: tuple[Any, ...],
        stream: int,
        scratch: int,
    ) -> None:
        q = tensors[0]
        buffers = self._arguments.buffers
        self._pack(buffers, prepared, part, tensors, scratch)
        address = q.data_ptr() + prepared.row_bytes[0] * part.start
        self._give_query(buffers, prepared, part, q, address)
        self._fire(buffers, prepared.ctas, part.combine_ctas, stream)

    def _give_query(
        self, buffers: Buffers, prepared: PreparedLists, part: ListSlice, q: Tensor, address: int
    ) -> None:
        """Where the slice's queries are: by a tensor map."""
        buffers.main_pointers[0] = self._map("q", part.q_form, address).address

    def _pack(
        self,
        buffers: Buffers,
        prepared: PreparedLists,
        part: ListSlice,
        tensors: tuple[Any, ...],
        scratch: int,
    ) -> None:
        _, first, second, sink, out, lse, max_logits = tensors
        second = second or Lists(first.cache, first.slots, None)
        start = part.start
        _, out_row, lse_row, slots_row, more_row = (n * start for n in prepared.row_bytes)
        buffers.pack(
            0, 0, 0, out.data_ptr() + out_row, lse.data_ptr() + lse_row,
            scratch, scratch + part.partial_stats, part.part_info and scratch + part.part_info,
        )  # fmt: skip
        buffers.pack_lists(
            first.slots.data_ptr() + slots_row, second.slots.data_ptr() + more_row,
            *(0 if lists.counts is None else lists.counts.data_ptr() + 4 * start
              for lists in (first, second)),
            first.cache.data_ptr(), second.cache.data_ptr(),
            0 if sink is None else sink.data_ptr(),
            0 if max_logits is None else max_logits.data_ptr() + lse_row,
        )  # fmt: skip
        buffers.tail[:] = part.tail
        buffers.list_tail[:] = part.list_tail


class SparseDecodeKernel(ListKernel):
    def run(self, call: SparseDecode) -> tuple[Tensor, Tensor]:
        second = None
        if call.extra_k_cache is not None and call.extra_indices is not None:
            more = _dense(call.extra_indices).unsqueeze(2)
            second = Lists(call.extra_k_cache, more, call.extra_topk_length)
        first = Lists(call.k_cache, _dense(call.indices).unsqueeze(2), call.topk_length)
        return self.attend(
            call.q, first, second, call.attn_sink, call.softmax_scale, call.out, call.lse, None
        )


class SparsePrefillKernel(ListKernel):
    def run(self, call: SparsePrefill) -> tuple[Tensor, Tensor, Tensor]:
        q, out = call.q, call.out
        lse, tops = call.lse, call.max_logits
        lists = Lists(call.kv.unsqueeze(1), _dense(call.indices).unsqueeze(1), call.topk_length)
        direct = lse is not None and tops is not None and lse.stride() == tops.stride()
        if not direct:
            facts = torch.empty((2, *q.shape[:2]), dtype=torch.float32, device=q.device)
            lse, tops = facts[0], facts[1]
        assert lse is not None
        assert tops is not None
        result, _ = self.attend(
            q.unsqueeze(1), lists, None, call.attn_sink, call.softmax_scale,
            None if out is None else out.unsqueeze(1), lse.unsqueeze(2), tops,
        )  # fmt: skip
        if not direct:
            lse = lse if call.lse is None else call.lse.copy_(lse)
            tops = tops if call.max_logits is None else call.max_logits.copy_(tops)
        return result.squeeze(1) if out is None else out, tops, lse


def _dense(indices: Tensor) -> Tensor:
    return indices if indices.stride(-1) == 1 or indices.shape[-1] == 1 else indices.contiguous()

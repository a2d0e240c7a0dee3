"""The bound dense decode kernel: from tensors to two launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

from .driver import Driver
from .geometry import POINTERS
from .launch import Arguments, Kernels, Launcher
from .prepare import Form, Prepared, Slice, Tensors, prepare
from .runtime import TorchCuda
from .tensormap import Encoder, HostCache, TensorMap
from .variants import Variant

_SCALE_MIN, _SCALE_MAX = 1e-30, 1e30


class DenseDecode(BoundKernel):
    """Immutable but for caches of host memory: prepared calls, tensor maps and per-thread
    argument buffers."""

    def __init__(
        self,
        key: KernelKey,
        variant: Variant,
        kernels: Kernels,
        driver: Driver,
        runtime: TorchCuda,
        index: int,
        multiprocessors: int,
    ) -> None:
        self.key = key
        self.kernels = kernels
        self._gathered = variant.gathered
        self._multiprocessors = multiprocessors
        self._runtime = runtime
        self._index = index
        self._encoder = Encoder(driver, variant.fp16)
        self._prepared = HostCache(128)
        self._maps = HostCache(1024)
        self._launch = Launcher(driver, index)
        self._arguments = Arguments(driver, kernels)

    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
        out: Tensor | None,
        lse: Tensor | None,
        plan: Any,
    ) -> tuple[Tensor, Tensor]:
        if self._runtime.current_device() == self._index:
            return self._run(q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse)
        with self._runtime.guard(self._index):
            return self._run(q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse)

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
        # One look-up by everything that shapes the launch; addresses are all that is left.
        name = (
            q.shape, q.stride(), k_cache.shape[0], k_cache.stride(),
            block_table.shape[1], block_table.stride(0), softmax_scale,
            out is not None and out.stride(), lse is not None and lse.stride(),
        )  # fmt: skip
        prepared = self._prepared.get(name)
        if prepared is None:
            if (rewritten := _usable(q, softmax_scale)) is not None:
                q, softmax_scale = rewritten
                return self._run(q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse)
            prepared = self._prepare(name, q, k_cache, block_table, softmax_scale, out, lse)
        if out is None:
            out = q.new_empty(prepared.out_shape)
        elif out.data_ptr() % 16 or not _strides_fit(out):
            result, lse = self._run(
                q, k_cache, block_table, cache_seqlens, softmax_scale, None, lse
            )
            return out.copy_(result), lse
        if lse is None:
            lse = cache_seqlens.new_empty(prepared.lse_shape, dtype=torch.float32)
        k_address = k_cache.data_ptr()
        k_maps = self._k_maps(prepared, k_address)
        addresses = (
            q.data_ptr(), block_table.data_ptr(), cache_seqlens.data_ptr(),
            out.data_ptr(), lse.data_ptr(),
        )  # fmt: skip
        for part in prepared.slices:
            self._launch_slice(prepared, part, addresses, k_address, k_maps, q)
        return out, lse

    def _prepare(
        self,
        name: Any,
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
        made = prepare(self.key, self._gathered, self._multiprocessors, call, softmax_scale)
        self._prepared.put(name, made)
        return made

    def _launch_slice(
        self,
        prepared: Prepared,
        part: Slice,
        addresses: tuple[int, int, int, int, int],
        k_address: int,
        k_maps: tuple[TensorMap, TensorMap] | None,
        like: Tensor,
    ) -> None:
        q, table, lens, out, lse = addresses
        if start := part.start:
            q_row, table_row, out_row, lse_row = prepared.row_bytes
            q, table, lens = q + start * q_row, table + start * table_row, lens + start * 4
            out, lse = out + start * out_row, lse + start * lse_row
        scratch = out  # where nothing is split any address will do
        if part.combine_ctas:
            # Freed when this returns: the allocator hands it to later work of this stream only.
            memory = like.new_empty(part.scratch // 2)
            scratch = memory.data_ptr()
        q_map = self._map("q", part.q_form, q)
        left, right = k_maps or (q_map, q_map)
        arguments = self._arguments
        POINTERS.pack_into(
            arguments.params, 0, k_address, table, lens, out, lse,
            scratch, scratch + part.partial_ml, scratch + part.part_info,
        )  # fmt: skip
        arguments.tail[:] = part.tail
        pointers = arguments.decode_pointers
        pointers[0], pointers[1], pointers[2] = q_map.address, left.address, right.address
        stream = self._runtime.stream(self._index)
        config = arguments.decode_config
        config.gridDimX = prepared.decode_ctas
        config.hStream = stream
        self._launch(config, self.kernels.decode, arguments.decode_list)
        if part.combine_ctas:
            config = arguments.combine_config
            config.gridDimX = part.combine_ctas
            config.hStream = stream
            self._launch(config, self.kernels.combine, arguments.combine_list)

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

    def _map(self, what: str, form: Form, address: int) -> TensorMap:
        name = (address, form)
        found: TensorMap | None = self._maps.get(name)
        if found is None:
            found = self._encoder.encode(what, address, form.dims, form.strides, form.box)
            self._maps.put(name, found)
        return found


def _usable(q: Tensor, scale: float) -> tuple[Tensor, float] | None:
    """None where the kernel takes q and the scale as they are; else an exact equivalent.

    The hardware steps over a broadcast q with real strides only. The kernel's maximum needs a
    scale above 0: the sign goes into q, and where the logits vanish whatever q is, q does.
    """
    if 0 in q.stride():
        return q.contiguous(), scale
    if _SCALE_MIN <= scale <= _SCALE_MAX:
        return None
    if abs(scale) > _SCALE_MAX:
        raise NotSupportedError("hopper", "softmax_scale", scale, f"at most {_SCALE_MAX:g}")
    return (-q, -scale) if scale <= -_SCALE_MIN else (torch.zeros_like(q), 1.0)


def _strides_fit(out: Tensor) -> bool:
    """Whether the kernel's 16-byte stores can go to ``out`` itself."""
    steps = out.stride()
    return steps[3] == 1 and not any(s % 8 for s in steps[:3])

"""Dense decode, host side. Immutable, no device memory held between calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends.triton import gluon_bound
from flashmla_hub.backends.triton.combine import combine_kernel
from flashmla_hub.backends.triton.config import (
    SLACK_PERCENT,
    Combine,
    Config,
    chunking,
    combine_for,
    rows_of,
)
from flashmla_hub.backends.triton.dense import dense_kernel
from flashmla_hub.backends.triton.host import (
    INVARIANT_COMBINE,
    INVARIANT_SCRATCH,
    LOG2E,
    VECTOR,
    multiprocessors,
    on_device,
    positive,
    resolved,
    vectors,
)
from flashmla_hub.backends.triton.launch import Launcher, capturing
from flashmla_hub.call import DenseDecode
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import TOKEN_STRIDED, KernelKey

# Widths of the vector of lengths, each a kernel of its own: a narrow one starts faster (2 us of 75
# on an H100). Larger batches go in slices. The eager ones are compiled by bind, so that a capture
# finds one for any batch; the others at first use.
BATCH_CLASSES = (32, 128, 2048)
EAGER_CLASSES = (32, 2048)
MAX_TOKENS = 2**31 - 4096


class DenseKernel(BoundKernel):
    """Dense decode for one key: a main kernel over the split plan and a combine."""

    def __init__(self, key: KernelKey, device: DeviceInfo, config: Config) -> None:
        self.key, self.config = key, config
        self.dtype = getattr(torch, key.dtype)
        self.fp8 = key.kv_format == "fp8"
        rows = rows_of(key)
        self.tiles_per_head = -(-rows // config.block_h)
        self.tiles = key.h_kv * self.tiles_per_head
        self.parts = max(1, multiprocessors(device) * config.per_sm // self.tiles)
        self.chunk, self.splits = chunking(key, config) if key.batch_invariant else (1, 1)
        self._rows = rows * key.h_kv
        shared = {
            "DV": key.d_v,
            "H": config.block_h,
            "N": config.block_n,
            "SLACK": SLACK_PERCENT,
            "STEP": config.step,
            "INVARIANT": key.batch_invariant,
            "CHUNK": self.chunk,
            "SPLITS": self.splits,
            "PDL": config.pdl,
        }
        main = {
            **shared,
            "DR": key.d_qk - key.d_v,
            "PAGE": key.page_block_size,
            "ROW": 0 if key.kv_strides == TOKEN_STRIDED else key.h_kv * key.d_qk,
            "FP8": self.fp8,
            "HARDWARE": config.hardware_fp8,
            "CAUSAL": key.causal,
            "STAGES": config.num_stages,
            "BREAK": config.break_chain,
            "SPREAD": config.spread,
        }
        early = {"launch_pdl": True} if config.pdl else {}
        options = {"num_warps": config.num_warps, **early, **dict(config.options)}
        self._main = {
            n: Launcher(dense_kernel, {**main, "BATCH": n, "SPLIT_TAIL": self._tail(n)}, options)
            for n in BATCH_CLASSES
        }
        self._gluon = gluon_bound.form_of(key, config, self.tiles, BATCH_CLASSES)
        self._combine = {
            (tile, n): Launcher(
                combine_kernel,
                {**shared, "BATCH": n, "RB": tile.rows, "CB": tile.cols, "SB": tile.splits},
                {"num_warps": 4, **early},
            )
            for n in BATCH_CLASSES
            for tile in self._combine_tiles(n)
        }
        self._choice: dict[int, tuple[int, Combine]] = {}  # by batch, once compiled

    def _tail(self, n: int) -> bool:
        """Whether the class of batches up to ``n`` masks in a loop of its own."""
        largest = BATCH_CLASSES[-1] if self.key.batch_invariant else n  # one form, one set of bits
        return 0 < self.config.split_tail <= largest

    def _combine_tile(self, batch: int) -> Combine:
        if self.key.batch_invariant:
            return INVARIANT_COMBINE
        split = min(batch, self.parts)  # requests that may be
        return combine_for(split * self._rows, -(-self.parts // split), self.key.d_v)

    def _combine_tiles(self, largest: int) -> list[Combine]:
        return list(dict.fromkeys(self._combine_tile(b) for b in range(1, largest + 1)))

    def launchers(
        self, n: int = BATCH_CLASSES[0]
    ) -> Iterator[tuple[str, Launcher, tuple[Any, ...]]]:
        """What batches of up to ``n`` launch: name, launcher, argument types."""
        d, f, i = self.dtype, torch.float32, torch.int32
        if self._gluon:
            yield "gluon", self._gluon.launchers[n], self._gluon.argument_types
        if not self._gluon or not self._gluon.any_pool:
            cache = torch.uint8 if self.fp8 else d
            yield "dense", self._main[n], (d, cache, i, i, d, f, f, 1.0, *[1] * 22, f, 1)
        for (tile, width), launcher in self._combine.items():
            if width == n and self._splits():
                name = f"combine {tile.rows}x{tile.cols}x{tile.splits}"
                yield name, launcher, (f, i, d, f, *[1] * 15)

    def compile(self) -> None:
        """Compile and load what serves any batch."""
        for n in EAGER_CLASSES:
            for _, launcher, args in self.launchers(n):
                launcher.compile(*args)

    def _splits(self) -> bool:
        return self.parts > 1 or self.key.batch_invariant

    def run(self, call: DenseDecode) -> tuple[Tensor, Tensor]:
        q, k_cache, block_table, cache_seqlens, softmax_scale, out, lse = call[:7]
        if self.fp8:  # declared for any q; the cache's alignment is in the key
            k_cache = k_cache.view(torch.uint8)
            q = q if vectors(q) else q.contiguous()
        key = self.key
        batch = q.shape[0]
        shape = (batch, key.s_q, key.h_q, key.d_v)
        if lse is None:
            lse = torch.empty((batch, key.h_q, key.s_q), dtype=torch.float32, device=q.device)
        target = out
        if out is None or not vectors(out):
            target = torch.empty(shape, dtype=self.dtype, device=q.device)
        assert target is not None
        width = block_table.shape[1]
        capacity = min(width * key.page_block_size, MAX_TOKENS)
        q, k_cache = resolved(q), resolved(k_cache)
        q, softmax_scale = positive(q, softmax_scale)
        slot_stride, most = self._slots(capacity)
        with on_device(q):
            for a in range(0, batch, most):
                b = min(batch, a + most)
                whole = a == 0 and b == batch
                self._launch(
                    *(t if whole else t[a:b] for t in (q, block_table, cache_seqlens, target, lse)),
                    k_cache, softmax_scale * LOG2E, capacity, slot_stride, call.descale_k,
                )  # fmt: skip
        if out is None:
            return target, lse
        if out is not target:
            out.copy_(target)
        return out, lse

    def _slots(self, capacity: int) -> tuple[int, int]:
        """Slots of a request in scratch (batch-invariant form), and requests for one launch."""
        if not self.key.batch_invariant:
            return 1, BATCH_CLASSES[-1]
        blocks = -(-capacity // self.config.block_n)
        stride = max(1, min(self.splits, -(-blocks // self.chunk)))
        request = stride * self.tiles * self.config.block_h * (self.key.d_v + 1) * 4
        return stride, max(1, min(BATCH_CLASSES[-1], INVARIANT_SCRATCH // request))

    def _choose(self, batch: int) -> tuple[int, Combine]:
        """The narrowest class that holds ``batch``, in a capture the narrowest compiled one; and
        the combine's tile."""
        tile = self._combine_tile(batch)
        mains = self._gluon.launchers if self._gluon else self._main
        for n in BATCH_CLASSES:
            if batch > n:
                continue
            if mains[n].ready and self._combine[tile, n].ready:
                self._choice[batch] = n, tile
                return n, tile
            if not capturing():
                return n, tile
        return BATCH_CLASSES[-1], tile

    def _launch(
        self, q: Tensor, table: Tensor, lens: Tensor, out: Tensor, lse: Tensor,
        kv: Tensor, scale: float, capacity: int, slot_stride: int, descale: Tensor | None,
    ) -> None:  # fmt: skip
        key, config = self.key, self.config
        batch = q.shape[0]
        slots = batch * slot_stride if key.batch_invariant else 2 * self.parts
        part_rows = slots * self.tiles * config.block_h
        scratch = torch.empty(part_rows * (key.d_v + 1), dtype=torch.float32, device=q.device)
        n, tile = self._choice.get(batch) or self._choose(batch)
        q_b, q_t, q_h, _ = q.stride()
        q_strides = (q_b // VECTOR, q_t // VECTOR, q_h // VECTOR)
        kv_page, kv_row, kv_head, _ = kv.stride()
        unit = 16 // kv.element_size()
        out_b, out_t, out_h, _ = out.stride()
        tail: tuple[Any, ...] = (
            out_b // VECTOR, out_t // VECTOR, out_h // VECTOR, *lse.stride(),
            batch, key.s_q, key.h_q // key.h_kv, self.tiles, self.tiles_per_head, self.parts,
            capacity, part_rows, slot_stride,
        )  # fmt: skip
        grid = (self.parts * self.tiles, 1, 1)
        pool = self._gluon.pool(kv) if self._gluon else None
        if self._gluon and pool:
            addresses, kv_strides = pool
            self._gluon.launchers[n](
                grid, q, *addresses, table, lens, out, lse, scratch, scale, *q_strides,
                *kv_strides, table.stride(0), *tail[:9], self.tiles, self.parts, capacity,
                part_rows,
            )  # fmt: skip
        else:
            self._main[n](
                grid, q, kv, table, lens, out, lse, scratch, scale,
                *q_strides, kv_page // unit, kv_row // unit, kv_head // unit,
                table.stride(0), *tail, lse if descale is None else descale,
                int(descale is not None),
            )  # fmt: skip
        if self._splits() and (slot_stride > 1 or not key.batch_invariant):
            programs = batch if key.batch_invariant else min(batch, self.parts - 1)
            grid = (programs, -(-self._rows // tile.rows), key.d_v // tile.cols)
            self._combine[tile, n](grid, scratch, lens, out, lse, *tail)

"""Sparse decode and prefill, and dense decode over FP8 caches: what a call launches. Immutable, no
device memory held between calls."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import kv_format
from flashmla_hub.backend import BoundKernel
from flashmla_hub.backends.triton import gluon_bound
from flashmla_hub.backends.triton.config import Combine, Config, combine_for, rows_of
from flashmla_hub.backends.triton.host import (
    INVARIANT_COMBINE,
    INVARIANT_SCRATCH,
    LOG2E,
    VECTOR,
    multiprocessors,
    on_device,
    positive,
    resolved,
    unit_of,
    vectors,
)
from flashmla_hub.backends.triton.launch import Launcher, Unaligned
from flashmla_hub.backends.triton.sparse import sparse_combine_kernel, sparse_kernel
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL, KernelKey

MAX_SPLITS = 32
INVARIANT_SPLITS = 4  # of a decode query, whatever the batch; prefill has queries enough
SPLIT_COST = 3  # what one more split costs, in blocks of attention
GLUON_TILES = 4  # with fewer, the plain form's smaller blocks spread further (batch 1: 20 %)
MAX_SLOTS = 2**31 - 1
# Columns of a layout that are V and K alike, and further ones of the rope part; those of "model1"
# are V too.
PARTS = {
    "v32": (512, 64), "model1": (448, 64), "v32_no_rope": (512, 0), "v41": (512, 0),
}  # fmt: skip
# Units in which a cache's strides may come, elements of 2 bytes and bytes of FP8 layouts; the first
# is 16 bytes. Each is a kernel of its own: a looser one reads a few bytes at a time.
UNITS = (8, 1)
FP8_UNITS = (16, 4, 1)
WIDE = 1 << 40  # stands for a stride that may need 64 bits


class SparseKernel(BoundKernel):
    """A sparse op for one key; sparse_ops.py has the subclasses with ``run``."""

    def __init__(self, key: KernelKey, device: DeviceInfo, config: Config) -> None:
        self.key, self.config = key, config
        self.dtype = getattr(torch, key.dtype)
        self.format, self.extra_format = formats(key)
        self.fp8 = self.format != "dense"
        self.units = FP8_UNITS if self.fp8 else UNITS
        self.cache_dtype = torch.uint8 if self.fp8 else self.dtype
        self.has_max = key.op == SPARSE_PREFILL
        self.paged = key.op == DENSE_DECODE
        self.tiles_per_head = -(-rows_of(key) // config.block_h)
        self.tiles = key.h_kv * self.tiles_per_head
        self._slots_at_once = multiprocessors(device) * config.per_sm
        nope, rope = PARTS.get(self.format, (key.d_v, key.d_qk - key.d_v))
        flags = {"HAS_SINK": key.attn_sink, "HAS_MAX": self.has_max, "PDL": config.pdl}
        main = {
            **flags,
            "FORMAT": self.format,
            "EXTRA_FORMAT": self.extra_format,
            "NOPE": nope,
            "DV": key.d_v,
            "DR": rope,
            "H": config.block_h,
            "N": config.block_n,
            "PAGE": key.page_block_size,
            "EXTRA_PAGE": key.extra_page_block_size if key.extra_topk else 0,
            "COUNTS": key.topk_length or self.paged,
            "EXTRA_COUNTS": key.extra_topk_length,
            "BREAK": config.break_chain,
            "SPREAD": config.spread,
            "HARDWARE": config.hardware_fp8,
            "PAGED": self.paged,
            "CAUSAL": key.causal,
        }
        early = {"launch_pdl": True} if config.pdl else {}
        options = {
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            **early,
            **dict(config.options),
        }
        self._main = {}
        for unit in self.units:
            prefetch = config.prefetch and unit == self.units[0]
            constants = {**main, "UNIT": unit, "PREFETCH": prefetch}
            self._main[unit] = Launcher(sparse_kernel, constants, options)
        self._gluon = gluon_bound.sparse_launcher(key) if config.gluon else None
        merge = {**flags, "DV": key.d_v, "H": config.block_h, "SMAX": MAX_SPLITS}
        self._combine = {
            tile: Launcher(
                sparse_combine_kernel,
                {**merge, "RB": tile.rows, "CB": tile.cols, "SB": tile.splits},
                {"num_warps": 4, **early},
            )
            for tile in self._combine_tiles()
        }
        self.splits_for = functools.lru_cache(maxsize=64)(self._splits_for)

    def _combine_tiles(self) -> list[Combine]:
        queries = [1] if self.key.batch_invariant else [2**n for n in range(12)]
        return list(dict.fromkeys(self._combine_tile(n) for n in queries))

    def _combine_tile(self, queries: int) -> Combine:
        if self.key.batch_invariant:
            return INVARIANT_COMBINE
        return combine_for(queries * self.key.h_q, MAX_SPLITS, self.key.d_v)

    def _takes_gluon(self, queries: int) -> bool:
        """Whether ``queries`` go through the Gluon form: a batch-invariant call always."""
        return self.key.batch_invariant or queries * self.tiles >= GLUON_TILES

    def _splits_for(self, queries: int, topk: int) -> int:
        """Splits of each query's list: the count that takes the fewest block times in all."""
        at_once = self.config.block_n
        if self._gluon and self._takes_gluon(queries):
            at_once *= self.config.step
        blocks = -(-topk // at_once) - (-self.key.extra_topk // at_once)
        if self.key.batch_invariant:
            return 1 if self.has_max else INVARIANT_SPLITS

        def cost(splits: int) -> int:
            waves = -(-queries * self.tiles * splits // self._slots_at_once)
            return waves * (-(-blocks // splits) + (SPLIT_COST if splits > 1 else 0))

        return min(range(1, max(1, min(MAX_SPLITS, blocks)) + 1), key=cost)

    def launchers(self) -> Iterator[tuple[str, Launcher, tuple[Any, ...]]]:
        """What a call may launch: name, launcher, argument types."""
        d, c, f, i = self.dtype, self.cache_dtype, torch.float32, torch.int32
        if self._gluon:
            yield "gluon", self._gluon, (d, c, i, i, f, d, f, f, f, 1.0, *[1] * 21)
        if not self._gluon or not self.key.batch_invariant:
            yield "sparse", self._main[self.units[0]], self._types(c, 1)
        if min(self.key.kv_alignment, self.key.extra_kv_alignment) < 16:
            for unit in self.units[1:]:
                yield f"sparse by {unit}", self._main[unit], self._types(Unaligned(c), WIDE)
        for tile, launcher in self._combine.items():
            name = f"combine {tile.rows}x{tile.cols}x{tile.splits}"
            yield name, launcher, (f, f, d, f, f, *[1] * 12)

    def _types(self, cache: torch.dtype | Unaligned, stride: int) -> tuple[Any, ...]:
        d, f, i = self.dtype, torch.float32, torch.int32
        strides = [stride] * 5  # of the caches
        return (d, cache, i, i, cache, i, i, f, d, f, f, f, 1.0, 1, 1, 1, *strides, *[1] * 21, f, 1)

    def compile(self) -> None:
        """Compile and load everything a call may launch."""
        for _, launcher, args in self.launchers():
            launcher.compile(*args)

    def _unit(self, cache: Tensor) -> int:
        dims = 1 if self.format == "model1" else 3  # tokens at fixed places of a page
        return unit_of(cache, self.units, dims)

    def launch(
        self, q: Tensor, kv: Tensor, indices: Tensor, counts: Tensor | None, sink: Tensor | None,
        extra_kv: Tensor | None, extra_indices: Tensor | None, extra_counts: Tensor | None,
        out: Tensor, lse: Tensor, max_logits: Tensor | None, softmax_scale: float, topk: int,
        descale: Tensor | None = None,
    ) -> None:  # fmt: skip
        """q, out (batch, s_q, h, d); indices (batch, s_q, h_kv, topk); lse (batch, h_q, s_q)."""
        key, config = self.key, self.config
        q, softmax_scale = positive(q, softmax_scale)
        batch, s_q = q.shape[:2]
        queries = batch * s_q
        splits = self.splits_for(queries, topk)
        part_rows = queries * splits * self.tiles * config.block_h if splits > 1 else 0
        scratch = lse
        if splits > 1:
            size = part_rows * (key.d_v + 2)
            scratch = torch.empty(size, dtype=torch.float32, device=q.device)
        cache = kv.view(torch.uint8) if self.fp8 else kv
        unit = self._unit(cache)
        extra, extra_page, extra_row = cache, 0, 0
        extra_strides, extra_topk, extra_slots = (0, 0), 0, 0
        if extra_kv is not None and extra_indices is not None:
            extra = extra_kv.view(torch.uint8) if self.fp8 else extra_kv
            unit = min(unit, self._unit(extra))
            extra_page, extra_row, _, _ = extra.stride()
            extra_strides = extra_indices.stride()[:2]
            extra_topk = extra_indices.shape[-1]
            extra_slots = min(MAX_SLOTS, extra_kv.shape[0] * extra_kv.shape[1])
        page, token, head, _ = cache.stride()
        strides = (page // unit, token // unit, head // unit)
        q_b, q_t, q_h, _ = q.stride()
        out_b, out_t, out_h, _ = out.stride()
        tops = lse if max_logits is None else max_logits
        sinks = lse if sink is None else sink
        tail = (
            out_b // VECTOR, out_t // VECTOR, out_h // VECTOR, *lse.stride(),
            s_q, key.h_q // key.h_kv, self.tiles, self.tiles_per_head, splits, part_rows,
        )  # fmt: skip
        slots = min(MAX_SLOTS, kv.shape[0] * kv.shape[1])
        if self._gluon and self._takes_gluon(queries) and unit == self.units[0]:
            items = queries * splits * self.tiles
            self._gluon(
                (min(items, self._slots_at_once), 1, 1), q, cache, indices,
                indices if counts is None else counts, sinks, out, lse, tops, scratch,
                softmax_scale * LOG2E, q_b // VECTOR, q_t // VECTOR, q_h // VECTOR, *strides[:2],
                *indices.stride()[:2], out_b // VECTOR, out_t // VECTOR, out_h // VECTOR,
                *lse.stride(), items, self.tiles, splits, s_q, key.h_q, topk, slots, part_rows,
            )  # fmt: skip
        else:
            self._main[unit](
                (queries * self.tiles, splits, 1), q, cache, indices,
                indices if counts is None else counts,
                extra, indices if extra_indices is None else extra_indices,
                indices if extra_counts is None else extra_counts,
                sinks, out, lse, tops, scratch, softmax_scale * LOG2E,
                q_b // VECTOR, q_t // VECTOR, q_h // VECTOR, *strides,
                extra_page // unit, extra_row // unit, *indices.stride()[:3], *extra_strides,
                topk, extra_topk, slots, extra_slots, *tail, lse if descale is None else descale,
                int(descale is not None),
            )  # fmt: skip
        if splits > 1:
            tile = self._combine_tile(queries)
            grid = (queries, -(-key.h_q // tile.rows), key.d_v // tile.cols)
            self._combine[tile](grid, scratch, sinks, out, lse, tops, *tail)

    def decode(
        self, q: Tensor, k_cache: Tensor, lists: Tensor, counts: Tensor | None,
        sink: Tensor | None, extra: tuple[Tensor | None, Tensor | None, Tensor | None],
        out: Tensor | None, lse: Tensor | None, softmax_scale: float, topk: int,
        descale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both decodes: lists (batch, s_q, 1, width), counts (batch,), extra the second cache,
        its lists and their counts; descale (1,) the scale of an fp8 cache."""
        key = self.key
        batch = q.shape[0]
        q, k_cache = resolved(q), resolved(k_cache)
        if not vectors(q):
            q = q.contiguous()
        if lse is None:
            lse = torch.empty((batch, key.h_q, key.s_q), dtype=torch.float32, device=q.device)
        target = out
        if target is None or not vectors(target):
            shape = (batch, key.s_q, key.h_q, key.d_v)
            target = torch.empty(shape, dtype=self.dtype, device=q.device)
        most = self._batch_at_once(topk) if key.batch_invariant else batch
        extra_cache, extra_lists, extra_counts = extra
        extra_cache = None if extra_cache is None else resolved(extra_cache)
        sink = None if sink is None else resolved(sink)
        with on_device(q):
            for a in range(0, batch, most):
                at = slice(a, min(batch, a + most))
                self.launch(
                    q[at], k_cache, lists[at], _rows(counts, at), sink,
                    extra_cache, _rows(extra_lists, at), _rows(extra_counts, at),
                    target[at], lse[at], None, softmax_scale, topk, descale,
                )  # fmt: skip
        if out is None:
            return target, lse
        if out is not target:
            out.copy_(target)
        return out, lse

    def _batch_at_once(self, topk: int) -> int:
        """Requests whose scratch stays within INVARIANT_SCRATCH."""
        splits = self.splits_for(self.key.s_q, topk)
        rows = self.key.s_q * splits * self.tiles * self.config.block_h
        return max(1, INVARIANT_SCRATCH // (rows * (self.key.d_v + 2) * 4))


def _rows(tensor: Tensor | None, at: slice) -> Tensor | None:
    return None if tensor is None else tensor[at]


def formats(key: KernelKey) -> tuple[str, str]:
    """The layouts of the first and the second cache."""
    return ("dense", "dense") if key.kv_format == "dense" else kv_format.caches(key.kv_format)

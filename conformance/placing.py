"""Puts a case's bits into device memory: pages in random order, poison or junk around them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashmla_hub.conformance import fp8
from flashmla_hub.conformance.bits import FORMATS, SHIFT, round_to
from flashmla_hub.conformance.inputs import Bits, Inputs
from flashmla_hub.conformance.memory import (
    CARRIERS,
    DTYPES,
    HUGE_BYTES,
    Call,
    NotReached,
    signed,
)
from flashmla_hub.conformance.pools import FAR_BYTES, GARBAGE, NAN
from flashmla_hub.request import PACKED, SPARSE_PREFILL, TOKEN_STRIDED

INF = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
JUNK = 100 << SHIFT  # a finite number no family draws, for unused memory without poison
RECORD = 132  # bytes that another record takes beside each token (word records)
FAR = FAR_BYTES + 4096  # bytes from page to page of a far pool
FP8_TYPES = {"uint8": torch.uint8, "int8": torch.int8}


def place(inputs: Inputs, device: torch.device | str = "cpu") -> Call:
    """The case's call on ``device``. Raises NotReached where memory does not allow it."""
    inference = "inference" in inputs.case.layout
    with torch.inference_mode() if inference else contextlib.nullcontext():
        builder = _Builder(inputs, torch.device(device))
        return builder.sparse() if inputs.sparse else builder.dense()


def _tensor(pattern: Bits) -> Tensor:
    """Bit patterns as the same-size torch integers."""
    carrier = {1: np.uint8, 2: np.int16, 4: np.int32}[pattern.dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(pattern).view(carrier))


class _Builder:
    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.inputs, self.case, self.key, self.device = inputs, inputs.case, inputs.key, device
        self.words = frozenset(inputs.case.layout)
        self.poison = "poison" in self.words
        self.far = inputs.case.variant == "offset_4g_bytes"
        self.storages: dict[str, Tensor] = {}

    def dense(self) -> Call:
        table = self.table()
        lengths = self.int32("cache_seqlens", np.array(self.inputs.given_lengths))
        kv = self.fp8_cache() if self.inputs.layout else self.dense_cache()
        return self.call(kv, block_table=table, cache_seqlens=lengths)

    def call(self, kv: Tensor, **more: Tensor | None) -> Call:
        scale = self.case.scale
        if self.key.op == SPARSE_PREFILL:
            scale = self.inputs.scale
        return Call(self.case, self.device, self.queries(), kv, scale,
                    storages=self.storages, **more)  # fmt: skip

    def int32(self, name: str, numbers: np.ndarray[Any, Any]) -> Tensor:
        # torch gives an empty numpy array strides of 0
        tensor = torch.from_numpy(numbers.astype(np.int32)).reshape(-1).view(numbers.shape)
        tensor = tensor.to(self.device)
        self.storages[name] = tensor
        return tensor

    # queries

    def queries(self) -> Tensor:
        key, kind = self.key, DTYPES[self.key.dtype]
        rows = [_tensor(self.inputs.q(row)) for row in range(self.case.batch)]
        shape = (key.h_q, key.d_qk) if key.op == SPARSE_PREFILL else (key.s_q, key.h_q, key.d_qk)
        drawn = (
            torch.stack(rows) if rows else torch.empty((0, *shape), dtype=CARRIERS[kind.itemsize])
        )
        if "neg_view" in self.words:
            drawn = drawn ^ signed(1 << (8 * kind.itemsize - 1), kind.itemsize)
        storage, view = self.laid_out(drawn)
        self.storages["q"] = storage
        q = view(storage).view(kind)
        return torch._neg_view(q) if "neg_view" in self.words else q

    def laid_out(self, drawn: Tensor) -> tuple[Tensor, Any]:
        """(storage on the device, how q is a view of it)."""
        words, key, shape = self.words, self.key, drawn.shape
        if "q_expanded" in words:  # one row's queries for all, by a stride of 0
            return drawn[:1].clone().to(self.device), lambda s: s.expand(shape)
        if "head_major" in words:  # heads outermost, as a transposed product of all heads leaves it
            dims = (2, 0, 1, 3) if drawn.dim() == 4 else (1, 0, 2)
            back = (1, 2, 0, 3) if drawn.dim() == 4 else (1, 0, 2)
            return drawn.permute(dims).contiguous().to(self.device), lambda s: s.permute(back)
        if "q_batch_strided" in words:
            wide = torch.full((2 * shape[0], *shape[1:]), 7, dtype=drawn.dtype)
            wide[::2] = drawn
            return wide.to(self.device), lambda s: s[::2]
        if key.q_strides != PACKED:  # a slice of a wider tensor
            wide = torch.full((*shape[:-1], key.d_qk + 64), 7, dtype=drawn.dtype)
            wide[..., : key.d_qk] = drawn
            return wide.to(self.device), lambda s: s[..., : key.d_qk]
        if "unaligned" in words:
            flat = torch.zeros(drawn.numel() + 1, dtype=drawn.dtype)
            flat[1:] = drawn.reshape(-1)
            return flat.to(self.device), lambda s: s[1:].view(shape)
        return drawn.to(self.device), lambda s: s

    # dense decode

    def table(self) -> Tensor:
        inputs, width = self.inputs, self.inputs.table_width
        extra = 3 if "table_strided" in self.words else 0
        numbers = np.zeros((self.case.batch, width + extra), np.int64)
        if self.poison and "null_block" not in self.words:
            numbers[:] = np.array(GARBAGE)[np.arange(width + extra) % len(GARBAGE)]
        for row, pages in enumerate(inputs.pool.table):
            numbers[row, : len(pages)] = pages
        return self.int32("block_table", numbers)[:, :width]

    def dense_cache(self) -> Tensor:
        inputs = self.inputs
        used = self.inputs.meaningful()
        pages = {number: inputs.tokens(number)[:count] for number, count in used.items()}
        return self.pool(pages, inputs.pool.num_blocks, self.key.page_block_size, "k_cache")

    def pool(self, pages: dict[int, Bits], blocks: int, size: int, name: str) -> Tensor:
        """A paged pool in the dtype of q; ``pages`` holds the leading tokens of each page."""
        key, kind = self.key, DTYPES[self.key.dtype]
        extra = name == "extra_k_cache"
        strided = self.strides(extra)
        token = key.h_kv * key.d_qk + (64 if strided == TOKEN_STRIDED else 0)
        page = size * token + (0 if strided == PACKED else 128)
        if self.far and not (extra and "near_extra" in self.words):
            page = FAR // kind.itemsize
        first = 1 if "unaligned" in self.words else 0
        storage = self.unused(first + max(blocks - 1, 0) * page + size * token, key.dtype)
        flip = signed(1 << (8 * kind.itemsize - 1), kind.itemsize)
        for number, tokens in pages.items():
            view = storage.as_strided((len(tokens), key.h_kv, key.d_qk), (token, key.d_qk, 1),
                                      first + number * page)  # fmt: skip
            drawn = _tensor(tokens)
            view.copy_(drawn ^ flip if "kv_neg_view" in self.words else drawn)
        self.storages[name] = storage
        shape, strides = (blocks, size, key.h_kv, key.d_qk), (page, token, key.d_qk, 1)
        cache = storage.view(kind).as_strided(shape, strides, first)
        return torch._neg_view(cache) if "kv_neg_view" in self.words else cache

    def strides(self, extra: bool) -> str:
        return self.key.extra_kv_strides if extra else self.key.kv_strides

    def unused(self, count: int, dtype: str) -> Tensor:
        """Memory as no row uses it: junk, or NaN and Inf in turns; untouched where it is huge."""
        kind = DTYPES[dtype]
        carrier = CARRIERS[kind.itemsize]
        if count * kind.itemsize > HUGE_BYTES:
            return self.untouched(count, carrier)
        if not self.poison:
            junk = round_to(np.array([JUNK]), FORMATS[dtype])
            return torch.full((count,), int(_tensor(junk)), dtype=carrier, device=self.device)
        storage = torch.full((count,), signed(NAN[dtype], kind.itemsize), dtype=carrier)
        storage[1::2] = INF[dtype]
        return storage.to(self.device)

    def untouched(self, count: int, dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty(count, dtype=dtype, device=self.device)
        except (RuntimeError, MemoryError) as error:
            gib = count * dtype.itemsize / 2**30
            raise NotReached(f"{gib:.1f} GiB of address space needed: {error}") from error

    # quantised caches

    def fp8_cache(self, pages: dict[int, Bits] | None = None, blocks: int = 0, size: int = 0,
                  name: str = "k_cache") -> Tensor:  # fmt: skip
        """An FP8 pool; ``pages`` holds each page's tokens (default: the dense pool's)."""
        layout = self.inputs.layout
        assert layout is not None
        size = size or self.key.page_block_size
        if pages is None:
            blocks, pages = self.inputs.pool.num_blocks, {}
            for number, count in self.inputs.meaningful().items():
                tokens = self.unused_fp8(size, layout)
                tokens[:count] = self.inputs.tokens(number)[:count]
                pages[number] = tokens
        token, stride = layout.token_bytes, layout.page_stride(size)
        if "records" in self.words:
            token, stride = token + RECORD, size * (token + RECORD)
        if self.strides(name == "extra_k_cache") != PACKED:
            # a pool of one token more per page, or one row more
            stride += layout.token_bytes if not layout.split else layout.page_stride(1)
        if self.far and not (name == "extra_k_cache" and "near_extra" in self.words):
            packed = layout.page_stride(size)
            stride = -(-FAR // packed) * packed if layout.split else FAR
        total = max(blocks - 1, 0) * stride + max(size * token, layout.page_stride(size))
        if total > HUGE_BYTES:
            storage, filled = self.untouched(total, torch.uint8), sorted(pages)
        else:
            fill = 0xFF if self.poison else 0
            storage = torch.full((total,), fill, dtype=torch.uint8)
            filled = list(range(blocks))
        for number in filled:
            tokens = pages[number] if number in pages else self.unused_fp8(size, layout)
            tokens = tokens.astype(np.uint8)
            if "records" in self.words:
                view = storage.as_strided(tokens.shape, (token, 1), number * stride)
                view.copy_(_tensor(tokens))
                continue
            page = fp8.page_bytes(tokens, layout)
            storage[number * stride : number * stride + len(page)] = torch.from_numpy(page)
        storage = storage.to(self.device)
        self.storages[name] = storage
        shape, strides = (blocks, size, 1, layout.token_bytes), (stride, token, token, 1)
        view = storage.as_strided(shape, strides)
        kinds = [FP8_TYPES[word] for word in FP8_TYPES if word in self.words]
        return view.view(kinds[0] if kinds else torch.float8_e4m3fn)

    def unused_fp8(self, size: int, layout: fp8.Layout) -> Bits:
        if self.poison:
            return fp8.poison_tokens(size, layout)
        return np.full((size, layout.token_bytes), 0x40, np.uint8)

    # sparse calls

    def sparse(self) -> Call:
        inputs, key, batch = self.inputs, self.key, self.case.batch
        more: dict[str, Tensor | None] = {}
        for extra in (False, True)[: 2 if key.extra_topk else 1]:
            prefix = "extra_" if extra else ""
            rows = [inputs.indices(row, extra) for row in range(batch)]
            more[f"{prefix}indices"] = self.int32(f"{prefix}indices", np.stack(rows))
            if inputs.given("topk_length", extra):
                counts = self.case.extra_lengths if extra else self.case.lengths
                more[f"{prefix}topk_length"] = self.int32(f"{prefix}topk_length", np.array(counts))
        if key.attn_sink:
            sink = _tensor(inputs.sink()).view(torch.float32).to(self.device)
            more["attn_sink"] = self.storages["attn_sink"] = sink
        if key.extra_topk:
            more["extra_kv"] = self.sparse_cache(True)
        kv = self.flat() if key.op == SPARSE_PREFILL else self.sparse_cache(False)
        return self.call(kv, **more)

    def sparse_cache(self, extra: bool) -> Tensor:
        inputs = self.inputs
        blocks, size = inputs.sparse_pool(extra)
        name = "extra_k_cache" if extra else "k_cache"
        pages: dict[int, Bits] = {}
        for number in range(blocks - 1):
            tokens = inputs.sparse_tokens(number, extra)
            if not number and inputs.first_slot(extra):
                tokens[:] = self.unused_tokens(len(tokens))
            elif self.poison and not number and size > 1:
                tokens[1::2] = self.unused_tokens(len(tokens[1::2]))
            pages[number] = tokens
        if inputs.layout:
            return self.fp8_cache(pages, blocks, size, name)
        return self.pool(pages, blocks, size, name)

    def flat(self) -> Tensor:
        """sparse_prefill's kv: one flat array; its last token is never pointed at."""
        inputs, key, kind = self.inputs, self.key, DTYPES[self.key.dtype]
        drawn = inputs.sparse_tokens(0)
        first, far = inputs.first_slot(), inputs.far_slots()
        if self.poison and not first:
            drawn[1::2] = self.unused_tokens(len(drawn[1::2]))
        drawn[:first] = self.unused_tokens(first)
        tokens = _tensor(np.concatenate([drawn, self.unused_tokens(1)]))
        count, stride = far + len(tokens), key.h_kv * key.d_qk
        if key.kv_strides != PACKED:
            stride += 64
        storage = self.unused(count * stride, key.dtype)
        shape, strides = (key.h_kv, key.d_qk), (key.d_qk, 1)
        storage.as_strided((len(tokens), *shape), (stride, *strides)).copy_(tokens)
        if far:
            at = far * stride
            storage.as_strided((len(tokens), *shape), (stride, *strides), at).copy_(tokens)
        self.storages["kv"] = storage
        return storage.view(kind).as_strided((count, *shape), (stride, *strides))

    def unused_tokens(self, count: int) -> Bits:
        if self.inputs.layout:
            return self.unused_fp8(count, self.inputs.layout)
        kind = FORMATS[self.key.dtype]
        shape = (count, self.key.h_kv, self.key.d_qk)
        mark = NAN[self.key.dtype] if self.poison else int(round_to(np.array([JUNK]), kind)[0])
        return np.full(shape, mark, kind.storage)

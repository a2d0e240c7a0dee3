"""Puts a case's bits into device memory: pages in random order, poison or junk around them.

The result, a :class:`Call`, holds the arguments of one public call and knows what its outputs
must look like.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashmla_hub.conformance import fp8
from flashmla_hub.conformance.bits import FORMATS, SHIFT, round_to
from flashmla_hub.conformance.inputs import GARBAGE, Bits, Inputs
from flashmla_hub.conformance.model import Case
from flashmla_hub.request import (
    PACKED,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
NAN = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000}
INF = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
# a quiet NaN with a payload: outputs are filled with it, so what was never written shows
UNWRITTEN = {"bfloat16": 0x7FE5, "float16": 0x7E25, "float32": 0x7FC00025}
JUNK = 100 << SHIFT  # a finite number no family draws, for unused memory without poison
HUGE_BYTES = 1 << 31  # allocations past this are neither filled nor copied


class NotReached(Exception):
    """The case cannot be put to the port here; the message is the reason."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the case's op, all on ``device``.

    ``storages`` are the buffers that inputs are views of, by argument name.
    """

    case: Case
    device: torch.device
    q: Tensor
    kv: Tensor
    scale: float | None
    block_table: Tensor | None = None
    cache_seqlens: Tensor | None = None
    indices: Tensor | None = None
    topk_length: Tensor | None = None
    attn_sink: Tensor | None = None
    extra_kv: Tensor | None = None
    extra_indices: Tensor | None = None
    extra_topk_length: Tensor | None = None
    storages: dict[str, Tensor] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Call:
        return replace(self, **changes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        key = self.case.key
        if key.op == SPARSE_PREFILL:
            return (self.q.shape[0], key.h_q, key.d_v)
        return (self.q.shape[0], key.s_q, key.h_q, key.d_v)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        key = self.case.key
        if key.op == SPARSE_PREFILL:
            return (self.q.shape[0], key.h_q)
        return (self.q.shape[0], key.h_q, key.s_q)

    def poisoned_outputs(self) -> tuple[Tensor, Tensor]:
        """(out, lse) to be written in place, filled with the unwritten mark."""
        return (
            _filled(self.out_shape, _name(self.q.dtype), UNWRITTEN, self.device),
            _filled(self.lse_shape, "float32", UNWRITTEN, self.device),
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the inputs' buffers, as integers; huge ones are left out."""
        return {
            name: _as_integers(storage).clone()
            for name, storage in self.storages.items()
            if storage.nbytes < HUGE_BYTES
        }

    def changed_since(self, before: dict[str, Tensor]) -> list[str]:
        """Names of the inputs whose bytes differ from a snapshot."""
        return [n for n, old in before.items()
                if not torch.equal(_as_integers(self.storages[n]), old)]  # fmt: skip


def unwritten(tensor: Tensor) -> Tensor:
    """Where ``tensor`` still holds the unwritten mark."""
    size = tensor.element_size()
    return tensor.contiguous().view(CARRIERS[size]) == _signed(UNWRITTEN[_name(tensor.dtype)], size)


def place(inputs: Inputs, device: torch.device | str = "cpu") -> Call:
    """The case's call on ``device``. Raises NotReached where memory does not allow it."""
    builder = _Builder(inputs, torch.device(device))
    return builder.sparse() if inputs.sparse else builder.dense()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_integers(storage: Tensor) -> Tensor:
    return storage.view(CARRIERS[storage.element_size()])


def _signed(pattern: int, size: int) -> int:
    top = 1 << (8 * size - 1)
    return pattern - 2 * top if pattern >= top else pattern


def _filled(
    shape: tuple[int, ...], dtype: str, marks: dict[str, int], device: torch.device
) -> Tensor:
    kind = DTYPES[dtype]
    carrier = CARRIERS[kind.itemsize]
    return torch.full(shape, _signed(marks[dtype], kind.itemsize), dtype=carrier,
                      device=device).view(kind)  # fmt: skip


def _tensor(pattern: Bits) -> Tensor:
    """Bit patterns as the same-size torch integers."""
    carrier = {1: np.uint8, 2: np.int16, 4: np.int32}[pattern.dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(pattern).view(carrier))


class _Builder:
    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.inputs, self.case, self.key, self.device = inputs, inputs.case, inputs.key, device
        self.poison = "poison" in self.case.layout
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

    def queries(self) -> Tensor:
        key, kind = self.key, DTYPES[self.key.dtype]
        rows = [_tensor(self.inputs.q(row)) for row in range(self.case.batch)]
        shape = (key.h_q, key.d_qk) if key.op == SPARSE_PREFILL else (key.s_q, key.h_q, key.d_qk)
        drawn = (
            torch.stack(rows) if rows else torch.empty((0, *shape), dtype=CARRIERS[kind.itemsize])
        )
        if key.q_strides != PACKED:  # a slice of a wider tensor
            wide = torch.full((*drawn.shape[:-1], key.d_qk + 64), 7, dtype=drawn.dtype)
            wide[..., : key.d_qk] = drawn
            storage = wide.to(self.device)
            self.storages["q"] = storage
            return storage[..., : key.d_qk].view(kind)
        if key.alignment == 1:
            flat = torch.zeros(drawn.numel() + 1, dtype=drawn.dtype)
            flat[1:] = drawn.reshape(-1)
            storage = flat.to(self.device)
            self.storages["q"] = storage
            return storage[1:].view(kind).view(drawn.shape)
        self.storages["q"] = drawn.to(self.device)
        return self.storages["q"].view(kind)

    def table(self) -> Tensor:
        inputs, width = self.inputs, self.inputs.table_width
        extra = 3 if "table_strided" in self.case.layout else 0
        numbers = np.zeros((self.case.batch, width + extra), np.int64)
        if self.poison:
            numbers[:] = np.array(GARBAGE)[np.arange(width + extra) % len(GARBAGE)]
        for row, pages in enumerate(inputs.pool.table):
            numbers[row, : len(pages)] = pages
        return self.int32("block_table", numbers)[:, :width]

    def meaningful(self) -> dict[int, int]:
        """Leading slots of each used page that some row's length reaches."""
        size, result = self.key.page_block_size, dict[int, int]()
        for row, pages in enumerate(self.inputs.pool.table):
            for logical, page in enumerate(pages):
                here = min(size, self.inputs.lengths[row] - logical * size)
                result[page] = max(result.get(page, 0), here)
        return result

    def dense_cache(self) -> Tensor:
        key, inputs = self.key, self.inputs
        kind, size = DTYPES[key.dtype], key.page_block_size
        token = key.h_kv * key.d_qk + (64 if key.kv_strides == TOKEN_STRIDED else 0)
        page = size * token + (0 if key.kv_strides == PACKED else 128)
        if self.case.variant == "offset_4g_bytes":
            page = (1 << 32) // kind.itemsize + 512
        first, blocks = 1 if key.alignment == 1 else 0, inputs.pool.num_blocks
        storage = self.unused(first + max(blocks - 1, 0) * page + size * token, key.dtype)
        for number, count in self.meaningful().items():
            view = storage.as_strided((count, key.h_kv, key.d_qk), (token, key.d_qk, 1),
                                      first + number * page)  # fmt: skip
            view.copy_(_tensor(inputs.tokens(number)[:count]))
        self.storages["k_cache"] = storage
        shape, strides = (blocks, size, key.h_kv, key.d_qk), (page, token, key.d_qk, 1)
        return storage.view(kind).as_strided(shape, strides, first)

    def unused(self, count: int, dtype: str) -> Tensor:
        """Memory as no row uses it: junk, or NaN and Inf in turns; untouched where it is huge."""
        kind = DTYPES[dtype]
        carrier = CARRIERS[kind.itemsize]
        if count * kind.itemsize > HUGE_BYTES:
            try:
                return torch.empty(count, dtype=carrier, device=self.device)
            except (RuntimeError, MemoryError) as error:
                gib = count * kind.itemsize / 2**30
                raise NotReached(f"{gib:.1f} GiB of address space needed: {error}") from error
        if not self.poison:
            junk = round_to(np.array([JUNK]), FORMATS[dtype])
            return torch.full((count,), int(_tensor(junk)), dtype=carrier, device=self.device)
        storage = torch.full((count,), _signed(NAN[dtype], kind.itemsize), dtype=carrier)
        storage[1::2] = INF[dtype]
        return storage.to(self.device)

    def fp8_cache(self, pages: dict[int, Bits] | None = None, blocks: int = 0, size: int = 0,
                  name: str = "k_cache") -> Tensor:  # fmt: skip
        """An FP8 pool; ``pages`` holds each page's tokens (default: the dense pool's)."""
        layout = self.inputs.layout
        assert layout is not None
        size = size or self.key.page_block_size
        if pages is None:
            blocks, pages = self.inputs.pool.num_blocks, {}
            for number, count in self.meaningful().items():
                tokens = self.unused_fp8(size, layout)
                tokens[:count] = self.inputs.tokens(number)[:count]
                pages[number] = tokens
        stride = layout.page_stride(size)
        if self.key.kv_strides != PACKED:  # a pool of one token more per page, or one row more
            stride += layout.token_bytes if not layout.split else layout.page_stride(1)
        memory = np.full(blocks * stride, 0xFF if self.poison else 0, np.uint8)
        for number in range(blocks):
            tokens = pages[number] if number in pages else self.unused_fp8(size, layout)
            page = fp8.page_bytes(tokens.astype(np.uint8), layout)
            memory[number * stride : number * stride + len(page)] = page
        storage = torch.from_numpy(memory).to(self.device)
        self.storages[name] = storage
        width = layout.token_bytes
        view = storage.as_strided((blocks, size, 1, width), (stride, width, width, 1))
        return view.view(torch.float8_e4m3fn)

    def unused_fp8(self, size: int, layout: fp8.Layout) -> Bits:
        if self.poison:
            return fp8.poison_tokens(size, layout)
        return np.full((size, layout.token_bytes), 0x40, np.uint8)

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
        return self.call(self.sparse_cache(False), **more)

    def sparse_cache(self, extra: bool) -> Tensor:
        inputs, key = self.inputs, self.key
        blocks, size = inputs.sparse_pool(extra)
        name = "extra_k_cache" if extra else "k_cache"
        if key.op == SPARSE_PREFILL:
            blocks, size = 2, (blocks - 1) * size
        pages: dict[int, Bits] = {}
        for number in range(blocks - 1):
            tokens = inputs.sparse_tokens(number, extra)
            if self.poison and number == 0 and size > 1:
                tokens[1::2] = self.unused_tokens(len(tokens[1::2]))
            pages[number] = tokens
        if inputs.layout:
            return self.fp8_cache(pages, blocks, size, name)
        if key.op == SPARSE_PREFILL:  # one flat array; its last token is never pointed at
            tail = self.unused_tokens(1)
            flat = _tensor(np.concatenate([pages[0], tail])).to(self.device)
            self.storages["kv"] = flat
            return flat.view(DTYPES[key.dtype])
        token = key.h_kv * key.d_qk
        page = size * token + (0 if key.kv_strides == PACKED else 128)
        storage = self.unused(blocks * page, key.dtype)
        for number, tokens in pages.items():
            storage[number * page : number * page + size * token] = _tensor(tokens).reshape(-1)
        self.storages[name] = storage
        shape, strides = (blocks, size, key.h_kv, key.d_qk), (page, token, key.d_qk, 1)
        return storage.view(DTYPES[key.dtype]).as_strided(shape, strides)

    def unused_tokens(self, count: int) -> Bits:
        if self.inputs.layout:
            return self.unused_fp8(count, self.inputs.layout)
        kind = FORMATS[self.key.dtype]
        shape = (count, self.key.h_kv, self.key.d_qk)
        mark = NAN[self.key.dtype] if self.poison else int(round_to(np.array([JUNK]), kind)[0])
        return np.full(shape, mark, kind.storage)

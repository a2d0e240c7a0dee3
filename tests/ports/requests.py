"""Requests with everything that a port may get wrong, and their judgement by the oracle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import flashmla_hub
from flashmla_hub.request import DENSE_DECODE, KernelKey
from tests import oracle

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
GARBAGE = (2147480000, -1, 77777)


@dataclass
class Dense:
    """A dense decode request: shuffled pages, a shared page, garbage past a row's pages, NaN in
    every slot that no row sees, and an empty row."""

    s_q: int = 1
    h_q: int = 16
    h_kv: int = 1
    page: int = 64
    dtype: str = "bfloat16"
    causal: bool = False
    lens: tuple[int, ...] = (70, 0, 1, 64, 129)
    strided: str = "packed"
    q_strided: bool = False
    scale: float | None = None
    seed: int = 0

    def make(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        dtype, page = DTYPES[self.dtype], self.page
        self.lens = tuple(self.lens)
        width = max(-(-n // page) for n in self.lens) + 2
        needed = sum(-(-n // page) for n in self.lens)
        blocks = needed + 3
        order = torch.randperm(blocks, generator=g).to(torch.int32)
        table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(len(self.lens), width)[:, :width]
        table = table.clone()
        pool = torch.full((blocks, page, self.h_kv, 576), float("nan"), dtype=dtype)
        if self.strided == "page":
            pool = torch.full((blocks, page + 3, self.h_kv, 576), float("nan"), dtype=dtype)
            pool = pool[:, :page]
        elif self.strided == "token":
            pool = torch.full((blocks, page, self.h_kv, 640), float("nan"), dtype=dtype)
            pool = pool[..., :576]
        at = 0
        for row, n in enumerate(self.lens):
            for i in range(-(-n // page)):
                table[row, i] = order[at]
                live = min(page, n - i * page)
                values = torch.randn(live, self.h_kv, 576, generator=g)
                pool[int(order[at]), :live] = values.to(dtype)
                at += 1
        width = 640 if self.q_strided else 576
        q = torch.randn(len(self.lens), self.s_q, self.h_q, width, generator=g).to(dtype)
        self.q = q[..., :576]
        self.k_cache, self.table = pool, table
        self.cache_seqlens = torch.tensor(self.lens, dtype=torch.int32)

    @property
    def key(self) -> KernelKey:
        return KernelKey(
            op=DENSE_DECODE,
            s_q=self.s_q,
            h_q=self.h_q,
            h_kv=self.h_kv,
            page_block_size=self.page,
            dtype=self.dtype,
            causal=self.causal and self.s_q > 1,
        )

    def call(self, backend: str | None = None, **changes):
        return flashmla_hub.flash_mla_with_kvcache(
            self.q, self.k_cache, self.table, self.cache_seqlens, 512, softmax_scale=self.scale,
            causal=self.causal, backend=backend, **changes,
        )  # fmt: skip

    def judge(self, out, lse, case: object = "") -> None:
        expected = oracle.dense_decode(
            self.q, self.k_cache, self.table, self.cache_seqlens, d_v=512,
            softmax_scale=self.scale or 1 / math.sqrt(576), causal=self.causal,
        )  # fmt: skip
        oracle.check(out, lse, expected, f"{case} seed={self.seed} {self.key.summary()}")


def check_dense(backend: str | None = None, **shape) -> None:
    """Make a request, call the hub, and hold the result and the inputs to the contract."""
    request = Dense(**shape)
    request.make()
    before = [t.clone() for t in (request.q, request.table, request.cache_seqlens)]
    pool = request.k_cache.clone()
    out, lse = request.call(backend)
    request.judge(out, lse, backend)
    for was, now in zip(before, (request.q, request.table, request.cache_seqlens), strict=True):
        assert torch.equal(was, now), "an input was changed"
    assert torch.equal(pool.view(torch.int16), request.k_cache.contiguous().view(torch.int16))

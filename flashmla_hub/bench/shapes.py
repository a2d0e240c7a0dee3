"""The shapes that are timed, their work and their bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import DenseDecode
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.request import KernelKey

D_QK, D_V, PAGE = 576, 512, 64


@dataclass(frozen=True)
class Shape:
    """A dense bfloat16 decode request, d 576/512, one KV head, causal where s_q > 1.

    ``varied``: lengths are normally distributed about ``s_k`` with half of it as deviation, never
    below s_q; else every row has ``s_k`` tokens. ``page``: tokens in a page of the cache.
    """

    batch: int
    s_q: int
    h_q: int
    s_k: int
    varied: bool = False
    page: int = PAGE

    def __str__(self) -> str:
        varied = " varied" if self.varied else ""
        page = f" page{self.page}" if self.page != PAGE else ""
        return f"b{self.batch} s_q{self.s_q} h{self.h_q} s{self.s_k}{varied}{page}"

    @property
    def causal(self) -> bool:
        return self.s_q > 1

    @property
    def key(self) -> KernelKey:
        return KernelKey(s_q=self.s_q, h_q=self.h_q, causal=self.causal, page_block_size=self.page)

    def lengths(self, seed: int) -> list[int]:
        if not self.varied:
            return [self.s_k] * self.batch
        rng = random.Random(seed)
        drawn = (int(rng.normalvariate(self.s_k, self.s_k / 2)) for _ in range(self.batch))
        return [max(n, self.s_q) for n in drawn]

    def flop(self, lengths: Sequence[int]) -> int:
        """Multiplications and additions of QK and PV, the mask not deducted."""
        return 2 * self.s_q * self.h_q * sum(lengths) * (D_QK + D_V)

    def bytes(self, lengths: Sequence[int]) -> int:
        """Unique bytes of K (V is part of it); q and out are left out."""
        return 2 * D_QK * sum(lengths)


STD = (
    Shape(128, 1, 128, 8192),
    Shape(128, 2, 128, 8192),
    Shape(128, 1, 128, 4096, varied=True),
    Shape(128, 2, 128, 8192, varied=True),
    Shape(128, 1, 64, 8192),
    Shape(128, 1, 32, 8192),
    Shape(128, 1, 16, 8192),
    Shape(128, 1, 16, 8192, varied=True),
    Shape(128, 2, 16, 8192),
    Shape(32, 1, 128, 4096),
    Shape(32, 1, 16, 4096),
    Shape(16, 1, 128, 2048),
    Shape(16, 1, 16, 2048),
    Shape(8, 1, 16, 8192),
    Shape(1, 1, 128, 1024),
    Shape(1, 1, 16, 1024),
    Shape(1, 1, 128, 8192),
    Shape(1, 1, 16, 32768),
    Shape(1, 1, 128, 131072),
    Shape(128, 1, 16, 1024),
)
LATENCY = (
    Shape(4, 1, 16, 64),
    Shape(1, 1, 16, 1024),
    Shape(1, 1, 16, 4096),
    Shape(1, 1, 16, 32768),
    Shape(1, 1, 128, 1024),
    Shape(1, 1, 128, 4096),
    Shape(1, 1, 128, 32768),
    Shape(4, 1, 128, 4096),
    Shape(16, 1, 128, 4096),
    Shape(64, 1, 128, 4096),
)
GRIDS = ("std", "small", "latency", "holdout")


def grid(name: str, seed: int) -> tuple[Shape, ...]:
    """The shapes of a named grid; ``holdout`` draws sixteen that nobody tuned for."""
    if name == "std":
        return STD
    if name == "small":
        return tuple(STD[i] for i in (0, 1, 4, 6, 7, 10, 14, 17))
    if name == "latency":
        return LATENCY
    if name != "holdout":
        raise InvalidRequestError("--grid", repr(name), " | ".join(GRIDS))
    rng = random.Random(seed)
    return tuple(
        Shape(
            batch=rng.choice([1, 2, 5, 17, 48, 96, 160, 256]),
            s_q=rng.choice([1, 1, 2, 3, 4]),
            h_q=rng.choice([8, 12, 16, 24, 32, 48, 64, 96, 128]),
            s_k=rng.choice([300, 1000, 3000, 6000, 12000]),
            varied=rng.choice([False, True]),
        )
        for _ in range(16)
    )


FORM = "B,S_Q,H_Q,S_K[,varied][,pageN]"
_TEXT = re.compile(",".join([r"([1-9]\d*)"] * 4) + r"(,varied)?(?:,page([1-9]\d*))?")


def parse(text: str) -> Shape:
    """A shape from its ``FORM``.

    Raises:
        InvalidRequestError: naming the text and the form.
    """
    found = _TEXT.fullmatch(text.replace(" ", ""))
    if found is None:
        raise InvalidRequestError("--shape", repr(text), f"{FORM}, e.g. 128,1,16,8192")
    batch, s_q, h_q, s_k = map(int, found.group(1, 2, 3, 4))
    return Shape(batch, s_q, h_q, s_k, found[5] is not None, int(found[6] or PAGE))


@dataclass(frozen=True)
class Case:
    """A shape's tensors on a device: pages in random order, no page shared."""

    shape: Shape
    lengths: tuple[int, ...]
    q: Tensor  # (batch, s_q, h_q, d_qk) bf16
    k_cache: Tensor  # (pages, page, 1, d_qk) bf16
    block_table: Tensor  # (batch, width) int32
    cache_seqlens: Tensor  # (batch,) int32
    softmax_scale: float

    def call(self, kernel: BoundKernel) -> Callable[[], tuple[Tensor, Tensor]]:
        """One decode by a bound kernel, past the hub, ready to be called again and again."""
        tensors = (self.q, self.k_cache, self.block_table, self.cache_seqlens)
        call = DenseDecode(*tensors, self.softmax_scale)
        return lambda: kernel.run(call)

    @property
    def flop(self) -> int:
        return self.shape.flop(self.lengths)

    @property
    def bytes(self) -> int:
        return self.shape.bytes(self.lengths)


def make_case(shape: Shape, seed: int, device: torch.device) -> Case:
    generator = torch.Generator(device).manual_seed(seed)
    lengths = tuple(shape.lengths(seed))
    width = -(-max(lengths) // shape.page)
    pages = shape.batch * width

    def values(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
        return drawn.div_(10).clamp_(-1, 1)

    order = torch.randperm(pages, generator=generator, device=device).to(torch.int32)
    return Case(
        shape=shape,
        lengths=lengths,
        q=values(shape.batch, shape.s_q, shape.h_q, D_QK),
        k_cache=values(pages, shape.page, 1, D_QK),
        block_table=order.view(shape.batch, width),
        cache_seqlens=torch.tensor(lengths, dtype=torch.int32, device=device),
        softmax_scale=D_QK**-0.5,
    )

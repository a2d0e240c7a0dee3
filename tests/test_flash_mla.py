"""The published shapes of FlashMLA's own test, on the device that is here.

``python tests/test_flash_mla.py`` checks each against a float64 reference, and on an accelerator
times it and prints TFLOPS and GB/s. Needs what the hub itself needs, and no pytest; under pytest
small shapes run on the CPU (tests/core/test_published_shapes.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import oracle
import torch
from torch import Tensor

if importlib.util.find_spec("flashmla_hub") is None:  # run from a checkout, not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flashmla_hub import explain_call, flash_mla_with_kvcache, get_mla_metadata

D_QK, D_V, H_KV, PAGE = 576, 512, 1, 64


@dataclass(frozen=True)
class Shape:
    batch: int
    s_q: int
    mean_s_k: int
    h_q: int
    varlen: bool
    causal: bool = True

    def __str__(self) -> str:
        return (
            f"b={self.batch:<3} s_q={self.s_q} s_k={self.mean_s_k:<5} h_q={self.h_q:<3} "
            f"varlen={self.varlen!s:<5} causal={self.causal!s:<5}"
        )


def published_shapes() -> Iterator[Shape]:
    for mean_s_k in (4096, 8192):
        for h_q in (16, 32, 64, 128):
            for s_q in (1, 2):
                for varlen in (False, True):
                    yield Shape(128, s_q, mean_s_k, h_q, varlen)
    for batch in (1, 2, 6, 64):
        yield Shape(batch, 1, 4096, 128, True)
    yield Shape(64, 2, 4096, 128, True, causal=False)


def small_shapes() -> Iterator[Shape]:
    for h_q in (16, 128):
        for s_q in (1, 2):
            for varlen in (False, True):
                yield Shape(4, s_q, 256, h_q, varlen)


@dataclass
class Inputs:
    q: Tensor
    k_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Shuffled pages; NaN in every slot past a row's length."""
    pick, rng = random.Random(seed), torch.Generator(device).manual_seed(seed)
    lens = [shape.mean_s_k] * shape.batch
    if shape.varlen:
        spread = (pick.normalvariate(shape.mean_s_k, shape.mean_s_k / 2) for _ in lens)
        lens = [max(int(n), shape.s_q) for n in spread]
    blocks = -(-max(lens) // PAGE)
    pages = shape.batch * blocks
    order = torch.randperm(pages, generator=rng, device=device)
    block_table = order.view(shape.batch, blocks).int()
    q = torch.randn(
        shape.batch, shape.s_q, shape.h_q, D_QK, generator=rng, device=device, dtype=dtype
    )
    k_cache = torch.randn(pages, PAGE, H_KV, D_QK, generator=rng, device=device, dtype=dtype)
    for row, n in zip(block_table.tolist(), lens, strict=True):
        if n % PAGE:
            k_cache[row[n // PAGE], n % PAGE :] = float("nan")
        k_cache[row[-(-n // PAGE) :]] = float("nan")
    return Inputs(q, k_cache, block_table, torch.tensor(lens, dtype=torch.int32, device=device))


def call(inputs: Inputs, shape: Shape, backend: str | None) -> tuple[Tensor, Tensor]:
    """As code written for FlashMLA does it."""
    meta, splits = get_mla_metadata(inputs.cache_seqlens, shape.s_q * shape.h_q // H_KV, H_KV)
    return flash_mla_with_kvcache(
        inputs.q,
        inputs.k_cache,
        inputs.block_table,
        inputs.cache_seqlens,
        D_V,
        meta,
        splits,
        causal=shape.causal,
        backend=backend,
    )


def reference(inputs: Inputs, shape: Shape) -> oracle.Expected:
    """Row by row in float64 (float32 where the device has no float64)."""
    wide = torch.float64 if inputs.q.device.type in ("cpu", "cuda") else torch.float32
    out, lse, top, rms = [], [], [], []
    for b, n in enumerate(inputs.cache_seqlens.tolist()):
        pages = inputs.block_table[b, : -(-n // PAGE)].long()
        k = inputs.k_cache[pages].reshape(-1, D_QK)[:n].to(wide)
        scores = torch.einsum("shd,nd->hsn", inputs.q[b].to(wide), k) * D_QK**-0.5
        if shape.causal:
            last = torch.arange(n - shape.s_q, n, device=k.device)
            hidden = torch.arange(n, device=k.device) > last[:, None]
            scores.masked_fill_(hidden, -torch.inf)
        out.append(torch.einsum("hsn,nd->shd", scores.softmax(-1), k[:, :D_V]))
        lse.append(scores.logsumexp(-1))
        top.append(scores.amax(-1))
        rms.append(k[:, :D_V].square().mean().sqrt().expand_as(top[-1]))
    return oracle.Expected(*(torch.stack(x).double().cpu() for x in (out, lse, top, rms)))


def check(shape: Shape, dtype: torch.dtype, device: torch.device, backend: str | None) -> Inputs:
    inputs = make_inputs(shape, dtype, device)
    out, lse = call(inputs, shape, backend)
    oracle.check(out, lse, reference(inputs, shape), shape)
    return inputs


def seconds_per_call(inputs: Inputs, shape: Shape, backend: str | None) -> float:
    """Median over rounds of back-to-back calls that share one step's metadata."""
    meta, _ = get_mla_metadata()
    arguments = (inputs.q, inputs.k_cache, inputs.block_table, inputs.cache_seqlens, D_V, meta)
    synchronize = torch.get_device_module(inputs.q.device).synchronize
    rounds = []
    for _ in range(6):
        synchronize()
        begun = time.perf_counter()
        for _ in range(10):
            flash_mla_with_kvcache(*arguments, causal=shape.causal, backend=backend)
        synchronize()
        rounds.append((time.perf_counter() - begun) / 10)
    return sorted(rounds[1:])[2]


def speed(inputs: Inputs, shape: Shape, seconds: float) -> str:
    tokens = int(inputs.cache_seqlens.sum())
    flops = 2 * shape.s_q * tokens * shape.h_q * (D_QK + D_V)
    queries = shape.batch * shape.s_q * shape.h_q
    moved = (tokens * H_KV * D_QK + queries * (D_QK + D_V)) * inputs.q.element_size()
    return (
        f"{seconds * 1e3:8.3f} ms {flops / seconds / 1e12:7.1f} TFLOPS "
        f"{moved / seconds / 1e9:7.0f} GB/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument("--device", type=torch.device, default=here or torch.device("cpu"))
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--backend", help="use this backend (default: the hub's choice)")
    args = parser.parse_args()

    accelerator = args.device.type != "cpu"
    shapes = [*(published_shapes() if accelerator else small_shapes())]
    for shape in shapes:
        inputs = check(shape, getattr(torch, args.dtype), args.device, args.backend)
        decision = explain_call(
            inputs.q, inputs.k_cache, inputs.block_table, inputs.cache_seqlens, D_V,
            causal=shape.causal, backend=args.backend,
        )  # fmt: skip
        line = f"{shape} right, by {decision.selected}"
        if accelerator:
            seconds = seconds_per_call(inputs, shape, args.backend)
            line += f": {speed(inputs, shape, seconds)}"
        print(line, flush=True)
    where = args.device if accelerator else f"{args.device} (small shapes only)"
    print(f"{len(shapes)} shapes right on {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

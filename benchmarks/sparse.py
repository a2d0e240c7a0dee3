"""Sparse decode and sparse prefill at production shapes, the hub beside FlashMLA, in one run.

    PYTHONPATH=... python benchmarks/sparse.py [--backends A,B] [--only TEXT] [--json FILE]

FlashMLA is whatever ``flash_mla`` PYTHONPATH shows; without one the hub is timed alone. It takes 64
or 128 heads: fewer are padded to 64, as engines do. It has no decode over unquantised caches on
Hopper. Lists are drawn at random, a cache for each request. Device time, caches flushed before
each call, the calls interleaved. TFLOP/s and GB/s count the listed tokens: products once a head, a
token's bytes once a list.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flashmla_hub
from flashmla_hub import kv_format
from flashmla_hub.bench.runner import cosine_difference
from flashmla_hub.bench.timing import DeviceClock

D_V = 512
TOKEN_BYTES = {"v32": 656, "model1": 576, "bf16 576": 1152, "bf16 512": 1024}
Calls = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Lists:
    topk: int
    tokens: int  # of a request
    page: int = 64


@dataclass(frozen=True)
class Decode:
    layout: str
    batch: int
    h_q: int
    s_q: int
    first: Lists
    extra: Lists | None = None

    @property
    def name(self) -> str:
        lists = "+".join(f"{x.topk}" for x in (self.first, self.extra) if x)
        pages = f" page {self.extra.page}" if self.extra and self.extra.page != 64 else ""
        return f"decode {self.layout} b{self.batch} h{self.h_q} s_q{self.s_q} topk {lists}{pages}"

    @property
    def listed(self) -> int:
        return self.batch * self.s_q * (self.first.topk + (self.extra.topk if self.extra else 0))

    @property
    def d_qk(self) -> int:
        return 576 if self.layout in ("v32", "bf16 576") else 512


@dataclass(frozen=True)
class Prefill:
    d_qk: int
    h_q: int
    s_q: int
    topk: int
    s_kv: int

    @property
    def name(self) -> str:
        return f"prefill {self.d_qk} h{self.h_q} s_q{self.s_q} topk {self.topk} s_kv {self.s_kv}"

    @property
    def listed(self) -> int:
        return self.s_q * self.topk

    @property
    def layout(self) -> str:
        return f"bf16 {self.d_qk}"


LONG, PEAK = Lists(2048, 8192), Lists(16384, 16384)
WINDOW, V4, V4_PRO = Lists(128, 4096, 256), Lists(512, 4096), Lists(1024, 4096)
SHAPES: tuple[Decode | Prefill, ...] = (
    *(Decode("v32", b, 128, s, LONG) for b, s in ((2, 2), (32, 1), (64, 2), (128, 2))),
    Decode("v32", 128, 64, 1, LONG),
    Decode("v32", 148, 128, 1, PEAK),
    *(Decode("v32", b, 16, 1, LONG) for b in (1, 32, 128)),
    *(Decode("model1", b, 64, 2, WINDOW, V4) for b in (2, 64, 128)),
    *(Decode("model1", b, 128, 2, WINDOW, V4_PRO) for b in (2, 64, 128)),
    Decode("model1", 128, 128, 2, WINDOW, Lists(1024, 4096, 2)),
    *(Decode("bf16 576", b, h, s, LONG) for b, h, s in ((1, 128, 1), (2, 128, 2), (128, 128, 2))),
    *(Decode("bf16 576", b, 16, 1, LONG) for b in (1, 32, 128)),
    Decode("bf16 512", 128, 64, 2, WINDOW, V4),
    Decode("bf16 512", 2000, 16, 1, WINDOW),
    *(Prefill(576, 128, 4096, 2048, n << 10) for n in (8, 32, 128)),
    *(Prefill(576, 128, n, 2048, 8192) for n in (16, 64, 256)),
    Prefill(576, 64, 4096, 2048, 8192),
    Prefill(512, 64, 4096, 512, 32768),
    Prefill(512, 128, 4096, 1024, 32768),
)


def legacy(call: Callable[..., Any]) -> Callable[..., Any]:
    """The Hopper kernels, where the package keeps them apart."""
    if "use_legacy" in inspect.signature(call).parameters:
        return functools.partial(call, use_legacy=True)
    return call


def peer() -> Any | None:
    try:
        import flash_mla
    except ImportError:
        return None
    return flash_mla


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / 10


def cache_and_lists(shape: Decode, lists: Lists) -> tuple[Tensor, Tensor]:
    keys = drawn(shape.batch * lists.tokens // lists.page, lists.page, 1, shape.d_qk)
    cache = keys
    if not shape.layout.startswith("bf16"):
        cache = kv_format.quantize(keys, shape.layout).view(torch.float8_e4m3fn)
    luck = torch.rand(shape.batch, shape.s_q, lists.tokens, device="cuda")
    first = torch.arange(shape.batch, device="cuda")[:, None, None] * lists.tokens
    return cache, (luck.topk(lists.topk).indices + first).to(torch.int32)


def decode_calls(shape: Decode, backends: list[str]) -> Calls:
    cache, indices = cache_and_lists(shape, shape.first)
    q = drawn(shape.batch, shape.s_q, shape.h_q, shape.d_qk)
    fp8 = cache.dtype != q.dtype
    options: dict[str, Any] = {"is_fp8_kvcache": fp8, "indices": indices}
    if shape.extra:
        more, others = cache_and_lists(shape, shape.extra)
        options |= {"extra_k_cache": more, "extra_indices_in_kvcache": others}
    meta, _ = flashmla_hub.get_mla_metadata()

    def ours(name: str) -> Callable[[], Tensor]:
        return lambda: flashmla_hub.flash_mla_with_kvcache(
            q, cache, None, None, D_V, meta, None, backend=name, **options
        )[0]

    calls = {name: ours(name) for name in backends}
    if fp8 and (package := peer()) is not None:
        theirs, _ = package.get_mla_metadata()
        call = legacy(package.flash_mla_with_kvcache)
        padding = (0, 0, 0, max(0, 64 - shape.h_q))
        padded = torch.nn.functional.pad(q, padding)
        calls["flash_mla"] = lambda: call(padded, cache, None, None, D_V, theirs, None, **options)[
            0
        ][:, :, : shape.h_q]
    return calls


def prefill_calls(shape: Prefill, backends: list[str]) -> Calls:
    kv, q = drawn(shape.s_kv, 1, shape.d_qk), drawn(shape.s_q, shape.h_q, shape.d_qk)
    some = min(shape.s_q, 256)
    picks = [
        torch.rand(some, shape.s_kv, device="cuda").topk(shape.topk).indices
        for _ in range(shape.s_q // some)
    ]
    indices = torch.cat(picks)[:, None].to(torch.int32)
    scale = shape.d_qk**-0.5

    def ours(name: str) -> Callable[[], Tensor]:
        return lambda: flashmla_hub.flash_mla_sparse_fwd(q, kv, indices, scale, backend=name)[0]

    calls = {name: ours(name) for name in backends}
    if (package := peer()) is not None:
        call = legacy(package.flash_mla_sparse_fwd)
        calls["flash_mla"] = lambda: call(q, kv, indices, scale)[0]
    return calls


def measure(shape: Decode | Prefill, backends: list[str], reps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    calls = (decode_calls if isinstance(shape, Decode) else prefill_calls)(shape, backends)  # type: ignore[operator]
    outs: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    for who in list(calls):
        try:
            outs[who] = calls[who]()
        except (flashmla_hub.NotSupportedError, RuntimeError) as error:
            refused[who] = str(error).splitlines()[0][:120]
            del calls[who]
    first = next(iter(outs.values())).double()
    difference = max(cosine_difference(x.double(), first) for x in outs.values())
    outs.clear()
    del first
    clock = DeviceClock(torch.device("cuda", torch.cuda.current_device()))
    flop = 2 * shape.listed * shape.h_q * (shape.d_qk + D_V)
    found = {
        "name": shape.name, "us": clock.interleaved(calls, reps), "flop": flop,
        "bytes": shape.listed * TOKEN_BYTES[shape.layout], "difference": difference,
        "refused": refused,
    }  # fmt: skip
    torch.cuda.empty_cache()
    return found


def line(row: dict[str, Any]) -> str:
    us, best = row["us"], min((t for who, t in row["us"].items() if who != "flash_mla"), default=0)
    listed = ", ".join(f"{who} {t:.1f}" for who, t in us.items())
    rate = f"{row['flop'] / best / 1e6:.0f} TF, {row['bytes'] / best / 1e3:.0f} GB/s"
    ratio = f", FlashMLA / best {us['flash_mla'] / best:.3f}" if "flash_mla" in us else ""
    return f"{row['name']}: {listed} us ({rate}){ratio}, difference {row['difference']:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backends", default="hopper,triton")
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for shape in SHAPES:
        if args.only in shape.name:
            rows.append(measure(shape, args.backends.split(","), args.reps))
            print(line(rows[-1]), flush=True)
    if args.json:
        facts = {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()

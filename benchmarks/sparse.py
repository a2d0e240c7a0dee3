"""Sparse decode over an FP8 cache and sparse prefill, the hub beside FlashMLA, in one run.

    PYTHONPATH=... python benchmarks/sparse.py [--backend NAME] [--reps N] [--json FILE]

FlashMLA is whatever ``flash_mla`` PYTHONPATH shows; without one the hub is timed alone. Layout v32
(656 bytes a token), page 64, top-k 2048 of 8192 tokens a request; prefill over 8192 keys in bf16.
Device time, caches flushed before each call, the calls interleaved. TFLOP/s count the products over
the selected keys.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flashmla_hub
from flashmla_hub import kv_format
from flashmla_hub.bench.runner import cosine_difference
from flashmla_hub.bench.timing import DeviceClock

D_QK, D_V, PAGE, TOPK, KEYS = 576, 512, 64, 2048, 8192
DECODE = ((128, 1, 128), (128, 1, 64), (32, 1, 128), (32, 2, 128), (2, 1, 128), (1, 1, 64))
PREFILL = ((4096, 128), (1024, 128), (4096, 64))


def peer() -> Any | None:
    try:
        import flash_mla
    except ImportError:
        return None
    return flash_mla


def legacy(call: Callable[..., Any]) -> Callable[..., Any]:
    """The Hopper kernels, where the package keeps them apart."""
    if "use_legacy" in inspect.signature(call).parameters:
        return functools.partial(call, use_legacy=True)
    return call


def decode_calls(batch: int, s_q: int, h_q: int, backend: str) -> dict[str, Callable[[], Tensor]]:
    g = torch.Generator("cuda").manual_seed(0)
    pages = batch * KEYS // PAGE
    keys = torch.randn(pages, PAGE, 1, D_QK, generator=g, device="cuda", dtype=torch.bfloat16) / 10
    cache = kv_format.quantize(keys, "v32")
    q = torch.randn(batch, s_q, h_q, D_QK, generator=g, device="cuda", dtype=torch.bfloat16) / 10
    drawn = torch.rand(batch, s_q, KEYS, generator=g, device="cuda").topk(TOPK).indices
    first = torch.arange(batch, device="cuda")[:, None, None] * KEYS
    indices = (drawn + first).to(torch.int32)
    meta, _ = flashmla_hub.get_mla_metadata()
    calls: dict[str, Callable[[], Tensor]] = {
        backend: lambda: flashmla_hub.flash_mla_with_kvcache(
            q, cache, None, None, D_V, meta, None, is_fp8_kvcache=True, indices=indices,
            backend=backend,
        )[0]
    }  # fmt: skip
    if (package := peer()) is not None:
        theirs, _ = package.get_mla_metadata()
        call = legacy(package.flash_mla_with_kvcache)
        as_fp8 = cache.view(torch.float8_e4m3fn)
        calls["flash_mla"] = lambda: call(
            q, as_fp8, None, None, D_V, theirs, None, is_fp8_kvcache=True, indices=indices
        )[0]
    return calls


def prefill_calls(s_q: int, h_q: int, backend: str) -> dict[str, Callable[[], Tensor]]:
    g = torch.Generator("cuda").manual_seed(0)
    kv = torch.randn(KEYS, 1, D_QK, generator=g, device="cuda", dtype=torch.bfloat16) / 10
    q = torch.randn(s_q, h_q, D_QK, generator=g, device="cuda", dtype=torch.bfloat16) / 10
    drawn = torch.rand(s_q, KEYS, generator=g, device="cuda").topk(TOPK).indices
    indices = drawn[:, None].to(torch.int32)
    scale = D_QK**-0.5
    calls: dict[str, Callable[[], Tensor]] = {
        backend: lambda: flashmla_hub.flash_mla_sparse_fwd(
            q, kv, indices, scale, backend=backend
        )[0]
    }  # fmt: skip
    if (package := peer()) is not None:
        call = legacy(package.flash_mla_sparse_fwd)
        calls["flash_mla"] = lambda: call(q, kv, indices, scale)[0]
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    clock = DeviceClock(torch.device("cuda", torch.cuda.current_device()))
    rows: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    shapes = [
        (f"decode b{b} s_q{s} h{h}", b * s * h, decode_calls, (b, s, h)) for b, s, h in DECODE
    ]
    shapes += [(f"prefill s_q{s} h{h}", s * h, prefill_calls, (s, h)) for s, h in PREFILL]
    for name, rows_of_q, make, shape in shapes:
        calls = make(*shape, args.backend)
        outs = {who: call().double() for who, call in calls.items()}
        difference = max(cosine_difference(x, outs[args.backend]) for x in outs.values())
        del outs
        us = clock.interleaved(calls, args.reps)
        flop = 2 * rows_of_q * TOPK * (D_QK + D_V)
        listed = ", ".join(f"{who} {t:.1f} us ({flop / t / 1e6:.0f} TF)" for who, t in us.items())
        ratio = f", ratio {us['flash_mla'] / us[args.backend]:.3f}" if "flash_mla" in us else ""
        print(f"{name}: {listed}{ratio}, difference {difference:.1e}", flush=True)
        rows.append({"name": name, "us": us, "flop": flop, "difference": difference})
        del calls
        torch.cuda.empty_cache()
    if args.json:
        facts = {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Thousands of random calls, each right or refused with a public error; prints counts.

    python tests/random_calls/run.py --count 10000 --backend torch,triton          interpreted
    python tests/random_calls/run.py --count 2000 --backend hopper,triton --device cuda

On the CPU triton runs under its interpreter, chosen for a simulated sm_80. On a card the calls are
of ``--kernels`` different kernels, as each takes seconds to compile.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def prepare(backends: list[str]) -> None:
    """Triton on the CPU: its interpreter, repaired, on a device that it takes."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["FLASHMLA_HUB_DEVICE"] = "nvidia:sm_80"
    import runpy

    runpy.run_path(str(HERE.parent / "triton" / "interpreted" / "conftest.py"))
    from flashmla_hub.backends.triton import dense_bound, sparse_bound

    for module in (dense_bound, sparse_bound):  # few parts: the interpreter runs them in turn
        module.multiprocessors = lambda device: 4


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first call")
    parser.add_argument("--backend", default="torch", help="names, comma-separated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", type=int, default=16, help="different ones, on a card")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: never")
    args = parser.parse_args(argv)
    backends = args.backend.split(",")
    cpu = args.device == "cpu"
    if cpu and "triton" in backends:
        prepare(backends)
    import torch
    from judging import judge

    torch.set_num_threads(1)
    device = torch.device(args.device)
    failed = 0
    for backend in backends:
        counts: collections.Counter[str] = collections.Counter()
        reasons: collections.Counter[str] = collections.Counter()
        start = time.monotonic()
        for seed in range(args.seed, args.seed + args.count):
            if args.seconds and time.monotonic() - start > args.seconds:
                break
            try:
                verdict, reason = judge(seed, backend, device, 0 if cpu else args.kernels)
            except Exception:
                verdict, reason = "RAW ERROR", traceback.format_exc()
            counts[verdict] += 1
            if verdict == "refused":
                reasons[reason] += 1
            elif verdict != "right":
                failed += 1
                print(f"{backend} seed {seed}: {verdict}: {reason}", flush=True)
        took = time.monotonic() - start
        told = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        print(f"{backend} on {device}: {sum(counts.values())} calls in {took:.0f} s: {told}")
        for reason, n in reasons.most_common(12):
            print(f"  refused {n}: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

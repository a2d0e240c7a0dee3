"""Versions of one of our backends beside each other and FlashMLA, in one process: an A/B test.

    git archive HEAD~1 backends csrc | tar x -C /somewhere/before
    PYTHONPATH=... python benchmarks/ab.py before=/somewhere/before now=. [--grid std] [--graph]
    PYTHONPATH=... python benchmarks/ab.py --backend triton before=/somewhere/before now=.

A version is a folder with ``backends`` and ``csrc``: the backend's host code and its kernels come
from there, the rest of the hub from this checkout. Calls are interleaved, so that the clock's
wandering hits all alike: code generation is fragile, and 1 % between two runs says nothing. Without
``flash_mla`` on PYTHONPATH the first version is what the others are compared with. Rows show
microseconds and (FlashMLA or first) / version; the last column is the distance of the outputs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flashmla_hub import api, registry
from flashmla_hub.bench import shapes
from flashmla_hub.bench.shapes import Case, Shape, make_case
from flashmla_hub.bench.timing import DeviceClock

PEER = "upstream"
BACKENDS = {"hopper": "HopperBackend", "triton": "TritonBackend"}
ROUNDS = 3  # graphs are captured this many times, the quickest counts


def load(backend: str, name: str, folder: Path, scratch: Path) -> Any:
    """The backend of a folder, its modules under a package of its own."""
    source = folder / "backends" / backend
    if not (source / "plugin.py").exists():
        raise SystemExit(f"{source}/plugin.py: no backend there")
    package = types.ModuleType(f"ab_{name}")
    if backend == "triton":  # its modules call each other by full name: a copy with another one
        copy = scratch / package.__name__
        copy.mkdir()
        for path in source.glob("*.py"):
            text = path.read_text().replace(f"flashmla_hub.backends.{backend}", package.__name__)
            (copy / path.name).write_text(text)
        source = copy
    package.__path__ = [str(source)]
    sys.modules[package.__name__] = package
    module = importlib.import_module(f"{package.__name__}.plugin")
    return getattr(module, BACKENDS[backend])()


def call_of(kernel: Any, case: Case) -> Callable[[], Tensor]:
    call = case.call(kernel)
    return lambda: call()[0]


def peer_of(case: Case) -> Callable[[], Tensor] | None:
    try:
        call = registry.get(PEER).peer_call(case)
        if call is not None:
            call()
        return call
    except Exception as error:
        print(f"without {PEER}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--backend", choices=BACKENDS, default="hopper")
    parser.add_argument("--grid", choices=shapes.GRIDS)
    parser.add_argument("--shape", action="append", default=[], metavar=shapes.FORM)
    parser.add_argument("--graph", action="store_true", help="per layer in a CUDA graph instead")
    parser.add_argument("--reps", type=int, default=15)
    args = parser.parse_args()
    versions = dict(word.split("=", 1) for word in args.versions)
    chosen = [shapes.parse(text) for text in args.shape]
    if args.grid or not chosen:
        chosen += shapes.grid(args.grid or "std", 0)
    torch.zeros(1, device="cuda")
    device = api.resolve_device(None)
    clock = DeviceClock(torch.device("cuda", torch.cuda.current_device()))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        backends = {
            name: load(args.backend, name, Path(folder), Path(scratch))
            for name, folder in versions.items()
        }
        with ThreadPoolExecutor() as pool:  # compiles each version once, side by side
            list(pool.map(lambda b: b.bind(chosen[0].key, device), backends.values()))
        for shape in chosen:
            print(compare(shape, backends, device, clock, args), flush=True)
            torch.cuda.empty_cache()


def compare(
    shape: Shape, backends: dict[str, Any], device: Any, clock: DeviceClock, args: Any
) -> str:
    case = make_case(shape, 0, clock.device)
    runs = {name: call_of(b.bind(shape.key, device), case) for name, b in backends.items()}
    peer = peer_of(case)
    if peer is not None:
        runs = {"FlashMLA": peer, **runs}
    base = next(iter(runs))
    reference = runs[base]().double()
    distance = {
        name: float((run().double() - reference).norm() / reference.norm())
        for name, run in runs.items()
    }
    if args.graph:
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                times[name].append(clock.in_graph(run, 20, 5))
        us = {name: min(found) for name, found in times.items()}
    else:
        us = clock.interleaved(runs, args.reps)
    cells = [f"{base} {us[base]:7.1f}"]
    cells += [f"{n} {us[n]:7.1f} {us[base] / us[n]:.3f}" for n in runs if n != base]
    return f"{shape!s:28s} {' | '.join(cells)} | {max(distance.values()):.0e}"


if __name__ == "__main__":
    main()

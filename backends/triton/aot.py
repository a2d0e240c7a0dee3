"""Ahead-of-time compilation for every target, without a device, and what each kernel needs.

    python -m flashmla_hub.backends.triton.aot [--targets sm_80,gfx942] [--json]

prints target x variant -> registers, spilled bytes, shared memory, programs per multiprocessor.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashmla_hub.backends.triton import bound
from flashmla_hub.backends.triton.config import config_for, target_of
from flashmla_hub.backends.triton.launch import Descriptor, Launcher, Unaligned
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_89": 142, "sm_90": 132, "sm_100": 148,
                   "sm_120": 170, "gfx90a": 104, "gfx942": 304, "gfx950": 256}  # fmt: skip
TARGETS = tuple(MULTIPROCESSORS)
SMALL = "64KiB"  # the class of unknown cards, compiled as sm_80
_POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
            torch.int32: "*i32", torch.uint8: "*u8"}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. ``spill`` is bytes of stack per thread (NVIDIA) or spilled
    vector registers (AMD); ``resident`` estimates programs per multiprocessor."""

    target: str
    variant: str
    kernel: str
    registers: int
    spill: int
    shared: int
    shared_limit: int
    resident: int
    counts: dict[str, int]

    @property
    def fits(self) -> bool:
        return self.shared <= self.shared_limit


def device_for(target: str) -> DeviceInfo:
    """A DeviceInfo that stands for ``target`` ("sm_90", "gfx942" or "64KiB")."""
    if target == SMALL:
        return DeviceInfo("unknown", "", "cuda", multiprocessors=100, simulated=True)
    vendor = "amd" if target.startswith("gfx") else "nvidia"
    n = MULTIPROCESSORS[target]
    return DeviceInfo(vendor, target, "cuda", multiprocessors=n, simulated=True)


def gpu_target(target: str) -> GPUTarget:
    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", 80 if target == SMALL else int(target.removeprefix("sm_")), 32)


def compile_for(launcher: Launcher, args: tuple[Any, ...], target: str) -> Any:
    """The compiled kernel of ``launcher`` for ``target``; args as for ``Launcher.compile``."""
    fn = launcher.fn
    signature: dict[str, str] = {}
    attrs: dict[tuple[int], Any] = {}
    for i, (param, arg) in enumerate(zip(fn.params, args, strict=False)):
        if isinstance(arg, Descriptor):
            signature[param.name] = _descriptor_type(arg)
        elif isinstance(arg, torch.dtype):
            signature[param.name] = _POINTER[arg]
            if not param.do_not_specialize:
                attrs[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(arg, Unaligned):
            signature[param.name] = _POINTER[arg.dtype]
        elif isinstance(arg, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = "i32" if arg < 2**31 else "i64"
    constants = launcher.constants
    signature.update(dict.fromkeys(constants, "constexpr"))
    kind = ASTSource
    if fn.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as kind
    source = kind(fn=fn, signature=signature, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=gpu_target(target), options=launcher.options)


def _descriptor_type(arg: Descriptor) -> str:
    from triton.experimental.gluon import language as gl

    block = ", ".join(map(str, arg.block))
    layout = gl.NVMMASharedLayout(128, 16, rank=2)
    return f"tensordesc<{_POINTER[arg.dtype][1:]}[{block}],{layout!r}>"


def resources(compiled: Any, target: str, variant: str, kernel: str) -> Resources:
    """Read registers, spills and instruction counts off the compiler's output."""
    asm, shared = compiled.asm, int(compiled.metadata.shared)
    limit = target_of(device_for(target)).shared_memory
    if "amdgcn" in asm:
        text = asm["amdgcn"]
        registers, spill = (_first(rf"\.{n}: +(\d+)", text) for n in _AMD_FIELDS)
        counts = {"mfma": text.count("v_mfma")}
        lanes = 512 // max(registers, 1)  # waves of a SIMD; a workgroup of 4 has one on each
    else:
        registers, spill = _cubin_usage(asm["cubin"])
        text = asm["ptx"]
        counts = {
            "cp.async": text.count("cp.async.cg") + text.count("cp.async.ca"),
            "tma": text.count("cp.async.bulk.tensor"),
            "wgmma": text.count("wgmma.mma_async"),
            "mma": text.count("mma.sync"),
            "tcgen05": text.count("tcgen05.mma"),
        }
        lanes = 65_536 // max(registers * compiled.metadata.num_warps * 32, 1)
    resident = min(lanes, limit // shared) if shared else lanes
    return Resources(target, variant, kernel, registers, spill, shared, limit, resident, counts)


_AMD_FIELDS = ("vgpr_count", "vgpr_spill_count")


def _first(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    text = run.stdout + run.stderr
    return _first(r"REG:(\d+)", text), _first(r"STACK:(\d+)", text)


def variants() -> dict[str, KernelKey]:
    """The keys whose kernels stand for all: row classes, page forms, dims, dtypes, layouts."""
    key = KernelKey()
    sparse = key.with_(op=SPARSE_DECODE, topk=2048)
    return {
        "rows 16": key.with_(h_q=16),
        "rows 32": key.with_(h_q=32),
        "rows 128": key,
        "rows 256 causal": key.with_(s_q=2, causal=True),
        "rows 16 page 16": key.with_(h_q=16, page_block_size=16),
        "rows 32 page 16": key.with_(h_q=32, page_block_size=16),
        "rows 128 page 16": key.with_(page_block_size=16),
        "rows 16 fp16 512/512": key.with_(h_q=16, dtype="float16", d_qk=512),
        "rows 16 invariant": key.with_(h_q=16, batch_invariant=True),
        "sparse bf16 16": sparse.with_(h_q=16),
        "sparse bf16 128": sparse,
        "sparse v32 16": sparse.with_(h_q=16, kv_format="v32"),
        "sparse bf16 16 loose": sparse.with_(h_q=16, kv_alignment=1),
        "sparse v32 16 loose": sparse.with_(h_q=16, kv_format="v32", kv_alignment=1),
        "sparse v32 128": sparse.with_(kv_format="v32"),
        "sparse model1 128": sparse.with_(kv_format="model1", d_qk=512),
        "sparse model1 16": sparse.with_(kv_format="model1", d_qk=512, h_q=16),
        "sparse v32_no_rope 16": sparse.with_(kv_format="v32_no_rope", d_qk=512, h_q=16),
        "sparse v41 16": sparse.with_(kv_format="v41", d_qk=512, h_q=16),
        "sparse v41 128": sparse.with_(kv_format="v41", d_qk=512),
        "sparse v41+v41_fp4 16": sparse.with_(
            kv_format="v41+v41_fp4", d_qk=512, h_q=16, extra_topk=1024, extra_page_block_size=64
        ),
        "sparse v41+v41_fp4 128": sparse.with_(
            kv_format="v41+v41_fp4", d_qk=512, extra_topk=1024, extra_page_block_size=64
        ),
        "sparse fp8 16": sparse.with_(kv_format="fp8", h_q=16),
        "dense fp8 16": key.with_(kv_format="fp8", h_q=16),
        "dense fp8 128": key.with_(kv_format="fp8"),
        "dense v32 128": key.with_(kv_format="v32"),
        "prefill 128": sparse.with_(op=SPARSE_PREFILL, page_block_size=1),
    }


COMBINES = "combines"


def table(targets: Iterable[str], names: Iterable[str]) -> Iterator[Resources]:
    """The main kernels of the named variants compiled for the targets; with COMBINES among the
    names, each combine kernel of a target as well."""
    wanted = list(names)
    for target in targets:
        device = device_for(target)
        seen: set[str] = set()
        for name, key in variants().items():
            if name not in wanted and not (COMBINES in wanted and key.op == DENSE_DECODE):
                continue
            kernel = bound.kernel_for(key, device, config_for(key, device))
            for part, launcher, args in kernel.launchers():
                combine = part.startswith("combine")
                if part in seen or (COMBINES if combine else name) not in wanted:
                    continue
                if combine:
                    seen.add(part)
                found = compile_for(launcher, args, target)
                yield resources(found, target, COMBINES if combine else name, part)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flashmla_hub.backends.triton.aot")
    parser.add_argument("--targets", default=",".join((*TARGETS, SMALL)))
    parser.add_argument("--variants", default=",".join((*variants(), COMBINES)))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args(argv)
    if not arguments.json:
        print(f"Triton {triton.__version__}; spill: stack bytes (NVIDIA), registers (AMD)")
        print(f"{'target':8} {'variant':22} {'kernel':18} regs spill  shared   limit resident")
    fits = True
    for row in table(arguments.targets.split(","), arguments.variants.split(",")):
        fits &= row.fits
        if arguments.json:
            print(json.dumps(asdict(row)), flush=True)
            continue
        counts = " ".join(f"{k}={v}" for k, v in row.counts.items() if v)
        print(
            f"{row.target:8} {row.variant:22} {row.kernel:18} {row.registers:4} {row.spill:5} "
            f"{row.shared:7} {row.shared_limit:7} {row.resident:5} {counts}"
            f"{'' if row.fits else '  DOES NOT FIT'}",
            flush=True,
        )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())

"""Declares the backend ``triton``. Imports no triton: specs and metadata say what is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends.triton import tuned
from flashmla_hub.backends.triton.config import GLUON_TARGETS, TARGETS
from flashmla_hub.capabilities import (
    ANY,
    NONE,
    Capabilities,
    DeviceClass,
    one_of,
    unsupported_reasons,
)
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import (
    DENSE_DECODE,
    PACKED,
    PAGE_STRIDED,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
    ChoiceKey,
    KernelKey,
)

FLASHMLA_HUB_PROTOCOL = 2

MIN_TRITON = (3, 6)
TESTED = "3.6 to 3.9"
DISTRIBUTIONS = ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm")
COMPILERS = ("cc", "gcc", "clang")  # Triton builds its launch stub with one of them

HEAD_DIMS = ((576, 512), (512, 512), (320, 256))
FP8_DIMS = {
    "v32": ((576, 512),),
    "model1": ((512, 512),),
    "v32_no_rope": ((512, 512),),
    "v41": ((512, 512),),
    "fp8": ((576, 512), (512, 512)),
}
PAIRS = {"v41+v41_fp4": ((512, 512),)}  # of caches, for sparse decode

TUNED = tuple(
    DeviceClass(vendor, tuple(arch for v, arch in TARGETS if v == vendor))
    for vendor in ("nvidia", "amd")
)
# Vendors that ship a Triton of their own and keep to its language; nothing was run on them.
UNTRIED = ("metax", "hygon", "iluvatar", "moore_threads", "thead")
DEVICES = (*TUNED, *(DeviceClass(vendor) for vendor in UNTRIED))


def _declare(op: str, kv_format: str = "dense") -> Capabilities:
    sparse, decode = op != DENSE_DECODE, op == SPARSE_DECODE
    fp8 = kv_format != "dense"
    strides = (PACKED, PAGE_STRIDED, TOKEN_STRIDED)
    return Capabilities(
        op=op,
        devices=DEVICES,
        # What e4m3 times a scale gives may be past what float16 holds.
        dtypes=("bfloat16",) if fp8 else ("bfloat16", "float16"),
        head_dims={**FP8_DIMS, **PAIRS}.get(kv_format, HEAD_DIMS),
        s_q=ANY,
        h_q=ANY,
        h_kv=one_of(1) if decode or fp8 else ANY,
        page_block_size=ANY,
        kv_formats=(kv_format,),
        causal=(False,) if sparse else (False, True),
        topk=ANY if sparse else NONE,
        topk_length=sparse,
        attn_sink=sparse,
        extra_topk=ANY if decode else NONE,
        extra_page_block_size=ANY if decode else NONE,
        extra_topk_length=decode,
        batch_invariant=True,
        kv_strides=strides[:2] if kv_format == "model1" else strides,
        q_strides=(PACKED, TOKEN_STRIDED),
        out_strides=(PACKED, TOKEN_STRIDED),
        alignment=1 if sparse or fp8 else 16,  # lists have a kernel for strides of any size
        cuda_graph=True,
        torch_compile=True,
        plans_per_call=True,
        rewrites=("contiguous_q", "contiguous_kv"),
    )


CAPABILITIES = (
    _declare(DENSE_DECODE),
    *(_declare(DENSE_DECODE, name) for name in FP8_DIMS),
    _declare(SPARSE_DECODE),
    *(_declare(SPARSE_DECODE, name) for name in (*FP8_DIMS, *PAIRS)),
    _declare(SPARSE_PREFILL),
)


def installed_version() -> str | None:
    """The installed Triton's version, '' where its metadata is missing, None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _too_old(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) < MIN_TRITON


class TritonBackend(Backend):
    """One Triton implementation of the whole contract, for every target Triton compiles for."""

    name = "triton"
    version = "1"
    info = BackendInfo(
        summary="portable Triton kernels, dense and sparse; on Hopper partly in Gluon",
        package="triton",
        versions=TESTED,
        confidence="high",
        verified="H200, 2026-11-29: L4, conformance/results/triton-h200-L4.json",
    )

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return CAPABILITIES

    def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
        version = installed_version()
        if version is None:
            return ("Triton is not installed: pip install 'flashmla-hub[triton]'",)
        reasons = []
        if _too_old(version):
            reasons.append(
                f"Triton {version} is installed, {TESTED} needed: it comes with torch >= 2.10"
            )
        if not any(map(shutil.which, COMPILERS)):
            reasons.append("Triton needs a C compiler on PATH: install gcc")
        return tuple(reasons)

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        """50 where the tile shapes are made for the target, 25 where they are only expected to
        fit (the vendor's own port, where there is one, ranks above both)."""
        return 50 if any(device in cls for cls in TUNED) else 25

    def notes(self, device: DeviceInfo) -> tuple[str, ...]:
        """That a Gluon form could not be had here; known once something was bound."""
        bound = sys.modules.get("flashmla_hub.backends.triton.gluon_bound")
        if bound is None or (device.vendor, device.arch) not in GLUON_TARGETS:
            return ()
        return tuple(bound.notes())

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(self.capabilities(device), key, device)
        if reasons:
            raise NotSupportedError(self.name, "request", key.summary(), "; ".join(reasons))
        missing = self.environment_reasons(device)
        if missing:
            raise NotSupportedError(self.name, "this machine", missing[0], f"Triton {TESTED}")
        from flashmla_hub.backends.triton import bound

        return bound.bind(key, device, tuned.config(key, device))

    def trials(self, key: KernelKey, device: DeviceInfo) -> dict[str, Callable[[], BoundKernel]]:
        """For ``flashmla-hub tune``: configs worth timing, by label, each bound when called."""
        from flashmla_hub.backends.triton import bound

        found = tuned.trials(key, device)
        return {name: partial(bound.bind, key, device, config) for name, config in found.items()}

    def keep(self, key: KernelKey, device: DeviceInfo, label: str) -> None:
        """For ``flashmla-hub tune``: bind ``key`` with the config of this label from now on."""
        tuned.keep(key, device, tuned.trials(key, device)[label])

    def files(self) -> tuple[str, ...]:
        # not this file: it names the evidence, which would name this file's digest
        here = Path(__file__)
        return tuple(sorted(str(path) for path in here.parent.glob("*.py") if path != here))


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (TritonBackend(),)

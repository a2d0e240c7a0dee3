"""Declares the backend ``hopper``: MLA in CUDA for sm_90a, dense and sparse (csrc/README.md).

Nothing of CUDA is imported before the first bind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmla_hub import cache, log
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel, BuildItem
from flashmla_hub.capabilities import (
    ANY,
    NONE,
    Capabilities,
    DeviceClass,
    between,
    one_of,
    unsupported_reasons,
)
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.forks import Lock
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

from . import tuned

if TYPE_CHECKING:
    from .build import Builder, Origin
    from .launch import Kernels
    from .runtime import TorchCuda
    from .units import Unit
    from .variants import Variant

FLASHMLA_HUB_PROTOCOL = 2

HOPPER = (DeviceClass("nvidia", ("sm_90",)),)


def _declare(op: str, **facts: Any) -> Capabilities:
    common: dict[str, Any] = {
        "op": op,
        "devices": HOPPER,
        "dtypes": ("bfloat16", "float16"),
        "head_dims": ((576, 512), (512, 512)),
        "h_q": ANY,
        "page_block_size": ANY,
        "batch_invariant": True,
        "kv_strides": (PACKED, PAGE_STRIDED, TOKEN_STRIDED),
        "q_strides": (PACKED, TOKEN_STRIDED),
        "out_strides": (PACKED, TOKEN_STRIDED),
        "alignment": 16,
        "cuda_graph": True,
        "torch_compile": True,
    }
    return Capabilities(**{**common, **facts})


_PAGES: dict[str, Any] = {"s_q": between(1, 16), "rewrites": ("contiguous_q", "fold_s_q")}
_LISTS: dict[str, Any] = {
    "causal": (False,), "topk": ANY, "topk_length": True, "attn_sink": True,
}  # fmt: skip
_TWO_LISTS: dict[str, Any] = {
    "s_q": between(1, 256),  # batch invariant: a row of the batch has to fit one workspace
    "h_kv": one_of(1), "extra_topk": ANY, "extra_page_block_size": ANY,
    "extra_topk_length": True, **_LISTS,
}  # fmt: skip
# The bf16 part of these layouts meets a bf16 query. Keys become fp16 on the way to the products: a
# scale above 128 would be inf there, in silence, so a caller has to ask by name.
_V32: dict[str, Any] = {
    "kv_formats": ("v32",), "head_dims": ((576, 512),), "dtypes": ("bfloat16",),
    "hazards": ("half_range",),
}  # fmt: skip
_MODEL1: dict[str, Any] = {
    "kv_formats": ("model1",), "head_dims": ((512, 512),), "dtypes": ("bfloat16",),
    "kv_strides": (PACKED, PAGE_STRIDED), "hazards": ("half_range",),
}  # fmt: skip
CAPABILITIES = (
    _declare(DENSE_DECODE, h_kv=ANY, **_PAGES),
    _declare(SPARSE_DECODE, **_TWO_LISTS),
    _declare(DENSE_DECODE, h_kv=one_of(1), **_PAGES, **_V32),
    _declare(SPARSE_DECODE, **_TWO_LISTS, **_V32),
    _declare(SPARSE_DECODE, **_TWO_LISTS, **_MODEL1),
    _declare(SPARSE_PREFILL, s_q=one_of(1), h_kv=ANY, extra_topk=NONE, **_LISTS),
)


class HopperBackend(Backend):
    """Compiles at first use, launches through the CUDA driver."""

    name = "hopper"
    version = "1"
    info = BackendInfo(
        summary="the hub's CUDA kernels for Hopper: dense and sparse, compiled at first use",
        vendor="NVIDIA",
        package="cuda-bindings",
        versions="NVRTC or nvcc >= 12.4",
        source="csrc/sm90",
        verified="H100 80GB HBM3, 2026-11-28: L3, conformance/results/hopper-h100-L3.json; "
        "H200, 2026-11-29: L3, conformance/results/hopper-h200-L3.json",
    )

    def __init__(
        self,
        runtime: TorchCuda | None = None,
        make_builder: Callable[[Path | None], Builder] | None = None,
    ) -> None:
        """The arguments replace torch.cuda and the compilers (cache folder -> builder) in tests."""
        self._runtime = runtime
        self._make_builder = make_builder
        self._lock = Lock()
        self._builders: dict[Path | None, Builder] = {}
        self._kernels: dict[tuple[Variant, int], Kernels] = {}

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return CAPABILITIES

    def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
        if CAPABILITIES[0].device_reasons(device):
            return ()  # another device: nothing to install would help
        from .environment import Environment

        return Environment().reasons()

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        key = choice.kernel
        # One request of few heads is over before the parts of its list are merged: portable
        # kernels are quicker there (batch 1, 16 heads, 2048 entries: 14.5 us beside 19.9).
        few = 0 < choice.batch_class * key.s_q <= 4 and key.h_q <= 16
        return 40 if key.op == SPARSE_DECODE and few else 90

    def notes(self, device: DeviceInfo) -> tuple[str, ...]:
        """What went wrong on the way to a loaded cubin (a cubin that the driver refused, say)."""
        origins = [o for kernels in list(self._kernels.values()) for o in kernels.origins]
        return tuple(dict.fromkeys(note for origin in origins for note in origin.notes))

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        """The kernel for ``key``, compiled and loaded.

        Raises:
            NotSupportedError: the declaration does not take ``key``; a graph is being captured
                (nothing may be loaded then); or no cubin could be built and loaded.
        """
        return self._bind(key, device, tuned.tuning(key, device))

    def trials(self, key: KernelKey, device: DeviceInfo) -> dict[str, Callable[[], BoundKernel]]:
        """For ``flashmla-hub tune``: settings worth timing, by label, each bound when called."""
        found = tuned.trials(key, device)
        return {name: partial(self._bind, key, device, setting) for name, setting in found.items()}

    def trial_group(self, key: KernelKey, device: DeviceInfo) -> str:
        return tuned.group(key, device)

    def keep(self, key: KernelKey, device: DeviceInfo, label: str) -> None:
        """For ``flashmla-hub tune``: bind ``key`` and its class with this setting from now on."""
        tuned.FILE.keep(tuned.group(key, device), device, tuned.trials(key, device)[label])

    def _bind(self, key: KernelKey, device: DeviceInfo, setting: tuned.Tuning) -> BoundKernel:
        reasons = unsupported_reasons(self.capabilities(device), key, device)
        if reasons:
            raise NotSupportedError(self.name, "request", key.summary(), "; ".join(reasons))
        from .bound import DenseKernel
        from .geometry import variant_for
        from .list_bound import SparseDecodeKernel, SparsePrefillKernel
        from .quantised import QuantisedDenseKernel, QuantisedSparseKernel
        from .runtime import TorchCuda

        runtime = self._runtime = self._runtime or TorchCuda()
        if runtime.capturing():
            raise NotSupportedError(
                self.name,
                "graph capture",
                f"first use of {key.summary()}",
                "call once, or warmup(), before capture",
            )
        variant = variant_for(key)
        with runtime.guard(device.index):
            kernels, driver = self._load(variant, device)
        sms = device.multiprocessors or runtime.multiprocessors(device.index)
        bound = {
            (DENSE_DECODE, False): DenseKernel,
            (DENSE_DECODE, True): QuantisedDenseKernel,
            (SPARSE_DECODE, False): SparseDecodeKernel,
            (SPARSE_DECODE, True): QuantisedSparseKernel,
            (SPARSE_PREFILL, False): SparsePrefillKernel,
        }[key.op, variant.family.quantised]
        return bound(key, variant, kernels, driver, runtime, device.index, sms, setting)

    def _load(self, variant: Variant, device: DeviceInfo) -> tuple[Kernels, Any]:
        from .build import BuildError
        from .driver import load_driver
        from .launch import Kernels

        try:
            driver = load_driver()
        except Exception as error:  # cuda-bindings raises its own types without a driver
            lacks = "; ".join(self.environment_reasons(device)) or "a working CUDA driver"
            raise NotSupportedError(self.name, "driver", error, lacks) from error
        # Two threads may load one variant at once: the same kernels twice, and one is kept.
        kernels = self._kernels.get((variant, device.index))
        if kernels is None:
            builder = self._builder()
            wanted = ((variant.main, variant.shared_bytes), (variant.combine, 0))

            def load(unit: Unit, shared: int) -> tuple[Any, Origin]:
                driver.bind_primary_context(device.index)  # contexts are per thread
                (name,) = unit.kernels
                return builder.load(
                    unit, lambda cubin: driver.function(driver.load(cubin), name, shared)
                )

            try:
                with ThreadPoolExecutor(len(wanted)) as pool:  # NVRTC compiles both at once
                    (main, first), (combine, second) = pool.map(lambda w: load(*w), wanted)
            except BuildError as error:
                lacks = "; ".join(self.environment_reasons(device)) or "see the log above"
                raise NotSupportedError(self.name, "build", error, lacks) from error
            for unit, origin in ((variant.main, first), (variant.combine, second)):
                _log_origin(unit.name, origin)
            made = Kernels(
                main, combine, variant.shared_bytes, variant.family.maps, (first, second)
            )
            kernels = self._kernels.setdefault((variant, device.index), made)
        return kernels, driver

    def _builder(self) -> Builder:
        from .build import Builder
        from .store import CubinStore

        folder = cache.folder("hopper")
        make = self._make_builder or (lambda folder: Builder(CubinStore(folder)))
        with self._lock:
            if folder not in self._builders:
                self._builders[folder] = make(folder)
            return self._builders[folder]

    def build_items(self, device: DeviceInfo) -> Iterator[BuildItem]:
        """One item for each variant: a key whose bind compiles and loads it."""
        from .variants import all_variants

        if CAPABILITIES[0].device_reasons(device):
            return
        for variant in all_variants():
            family = variant.family
            facts: dict[str, Any] = {"kv_format": family.kv_format}
            if family.lists:
                facts |= {"op": SPARSE_DECODE, "topk": 2048}
            if family.quantised:
                facts |= {"h_q": variant.rows}
            yield BuildItem(
                name=variant.main.name,
                key=KernelKey(
                    **facts,
                    dtype="float16" if variant.fp16 else "bfloat16",
                    d_qk=variant.d_qk,
                    page_block_size=64 if family.k_maps else 1,
                    batch_invariant=variant.batch_invariant,
                ),
                concurrent=True,
            )

    def files(self) -> tuple[str, ...]:
        from .units import CSRC, source_closure
        from .variants import all_units

        sources = {path for unit in all_units() for path in source_closure(unit.source)}
        return tuple(sorted(str(CSRC / path) for path in sources))


def _log_origin(name: str, origin: Origin) -> None:
    log.info(
        "hopper: %s from %s (%s): compiled in %.2f s, loaded in %.1f ms",
        name, origin.source, origin.compiler, origin.compile_s, origin.load_s * 1e3,
    )  # fmt: skip
    for note in origin.notes:
        log.warning("hopper: %s: %s", name, note)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (HopperBackend(),)

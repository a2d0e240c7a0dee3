"""FlashMLA of DeepSeek's line: dense decode on Hopper, in every generation that had it.

DeepSeek's release of 2026-09-30 dropped Hopper and dense decode; sgl-flash-mla keeps a snapshot of
the kernels before it, reached with ``use_legacy=True``. Which generation is installed is read from
its source text, without importing it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution
from types import SimpleNamespace
from typing import TYPE_CHECKING

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import owners, signature
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import ANY, Capabilities, DeviceClass, between
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import KernelKey

if TYPE_CHECKING:
    from torch import Tensor

    from flashmla_hub.bench.shapes import Case

FLASHMLA_HUB_PROTOCOL = 2

INTERFACE = "flash_mla/flash_mla_interface.py"
GET = "pip install sgl-flash-mla, or build deepseek-ai/FlashMLA at ba89a34 or before"


class Upstream(Port):
    """Dense decode. A plan is made on the device in each call, so lengths may change in place."""

    name = "upstream"
    worth = 75
    info = BackendInfo(
        summary="DeepSeek's FlashMLA for Hopper (frozen upstream): dense decode",
        vendor="NVIDIA",
        package="flash_mla | sgl-flash-mla | tokenspeed-flashmla",
        versions="up to 2026-09; sgl-flash-mla with use_legacy=True",
        source="https://github.com/deepseek-ai/FlashMLA",
    )
    declarations = (
        Capabilities(
            devices=(DeviceClass("nvidia", ("sm_90",)),),
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 16),
            h_q=ANY,
            h_kv=ANY,
            alignment=16,
            cuda_graph=True,
            torch_compile=True,
            plans_per_call=True,
            empty_rows=False,
            rewrites=("split_pages", "contiguous_q", "contiguous_kv", "repair_empty_rows"),
        ),
    )

    def distribution(self) -> Distribution | None:
        found = (owners.find(key) for key in ("sglang", "deepseek", "tokenspeed"))
        return next((d for d in found if d is not None), None)

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return (f"FlashMLA is not installed: found {owners.describe_installed()}; {GET}",)
        taken = _parameters(distribution)
        if "enable_batch_invariant" in taken and "use_legacy" not in taken:
            return (
                f"{distribution.metadata['Name']} {distribution.version} is of the 2026-09-30 "
                f"generation, which has no dense decode and no Hopper; {GET}",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        return DenseKernel(self._interface(), key)  # type: ignore[arg-type]

    def peer_call(self, case: Case) -> Callable[[], Tensor]:
        """With one metadata object for all calls, as a model's layers share it."""
        interface = self._interface()
        q, h_kv = case.q, case.k_cache.shape[2]
        rows = q.shape[1] * q.shape[2] // h_kv
        meta, splits = interface.get_mla_metadata(case.cache_seqlens, rows, h_kv)
        decode = functools.partial(
            interface.flash_mla_with_kvcache, q, case.k_cache, case.block_table,
            case.cache_seqlens, 512, meta, splits,
            softmax_scale=case.softmax_scale, causal=case.shape.causal,
        )  # fmt: skip
        return lambda: decode()[0]

    def _interface(self) -> SimpleNamespace:
        """The two functions, with what this generation needs to reach the Hopper kernels."""
        distribution = self.distribution()
        assert distribution is not None  # missing() is empty
        module = foreign.load("flash_mla", distribution)
        call = module.flash_mla_with_kvcache
        if "use_legacy" in _parameters(distribution):
            call = functools.partial(call, use_legacy=True)
        return SimpleNamespace(
            flash_mla_with_kvcache=call, get_mla_metadata=module.get_mla_metadata
        )


def _parameters(distribution: Distribution) -> tuple[str, ...]:
    return signature.parameters(distribution, INTERFACE, "flash_mla_with_kvcache") or ()


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Upstream(),)

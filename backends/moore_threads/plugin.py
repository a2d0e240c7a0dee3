"""Moore Threads: MT-flashMLA (2025-02) and its successor, the FlashMLA wrapper of MATE.

MT-flashMLA takes bf16 only (its fp16 sources are commented out, whatever its README says), prints
to stdout and synchronises on each call, and ends the process (FLASH_ASSERT) on a page other than
64, a head_dim_v other than 512, or a batch of 4096 and more. The gate keeps the first two from it;
large batches are served in parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import owners
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import Capabilities, DeviceClass, between, one_of
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import PACKED, PAGE_STRIDED, TOKEN_STRIDED, KernelKey

FLASHMLA_HUB_PROTOCOL = 2

DEVICES = (DeviceClass("moore_threads", ("mp_31",)),)
MAX_BATCH = 4095
GET_MATE = (
    "install https://github.com/MooreThreads/mate and its wrappers/FlashMLA (needs MUSA and "
    "torch_musa)"
)


class MTFlashMLA(Port):
    """MT-flashMLA."""

    name = "moore_threads"
    worth = 66
    info = BackendInfo(
        summary="MT-flashMLA: dense decode on the S5000 (capability 3.1)",
        vendor="Moore Threads",
        package="flash_mla",
        versions="1.0.0 with extension flash_mla_musa",
        source="https://github.com/MooreThreads/MT-flashMLA (c564db4)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            s_q=between(1, 8),
            h_q=between(1, 128),
            kv_strides=(PACKED, PAGE_STRIDED, TOKEN_STRIDED),
            q_strides=(PACKED, TOKEN_STRIDED),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            hazards=("synchronises", "prints"),
            rewrites=("split_pages", "fold_s_q", "repair_empty_rows"),
        ),
    )
    owner = "moore_threads"
    max_batch: int | None = MAX_BATCH

    def distribution(self) -> Distribution | None:
        return owners.find(self.owner)

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                f"MT-flashMLA is not installed: found {owners.describe_installed()}; run "
                "'python setup_musa.py install' in https://github.com/MooreThreads/MT-flashMLA, "
                f"or better its successor: {GET_MATE}",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        module = foreign.load("flash_mla", self.distribution())
        return DenseKernel(module, key, max_batch=self.max_batch)


class Mate(MTFlashMLA):
    """The ``flash_mla`` wrapper over ``mate.flashmla``."""

    name = "moore_threads_mate"
    worth = 70
    info = BackendInfo(
        summary="MATE's FlashMLA wrapper: dense decode on the S5000 (capability 3.1)",
        vendor="Moore Threads",
        package="mate + flash_mla",
        versions="0.2.2 to 0.2.6",
        source="https://github.com/MooreThreads/mate (3f58cc3)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 5),
            h_q=one_of(8, 16, 32, 64, 128),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=(
                "pad_heads",
                "contiguous_q",
                "contiguous_kv",
                "split_pages",
                "fold_s_q",
                "repair_empty_rows",
            ),
        ),
    )
    owner = "mate"
    max_batch = None

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            found = owners.describe_installed()
            return (f"MATE's flash_mla wrapper is not installed: found {found}; {GET_MATE}",)
        if not foreign.distributions("mate"):
            return (f"the flash_mla wrapper is there but mate itself is not; {GET_MATE}",)
        return ()


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (MTFlashMLA(), Mate())

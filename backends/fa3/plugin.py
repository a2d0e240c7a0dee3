"""FlashAttention-3: dense decode through ``flash_attn_with_kvcache(..., qv=)``.

The full build (distribution flash_attn_3) reads a paged cache. The forward-only wheel (fa3-fwd) was
built without that: the adapter gathers each row's pages into contiguous memory first, a copy of
all keys on every call, which makes it a check on others and no fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import ANY, Capabilities, DeviceClass, between
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import PACKED, PAGE_STRIDED, TOKEN_STRIDED, KernelKey

if TYPE_CHECKING:
    from torch import Tensor

    from flashmla_hub.bench.shapes import Case

FLASHMLA_HUB_PROTOCOL = 2

DEVICES = (DeviceClass("nvidia", ("sm_90",)),)


class FA3Paged(Port):
    """The full build. P = 0 times a NaN in V past a row's end is NaN: it needs a finite cache."""

    name = "fa3"
    worth = 74
    info = BackendInfo(
        summary="FlashAttention-3 with qv: dense decode on a paged cache",
        vendor="NVIDIA",
        package="flash_attn_3",
        source="https://github.com/Dao-AILab/flash-attention (hopper/)",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            s_q=between(1, 16),
            h_q=ANY,
            page_block_size=ANY,
            kv_strides=(PACKED, PAGE_STRIDED, TOKEN_STRIDED),
            alignment=16,
            cuda_graph=True,
            torch_compile=True,
            empty_rows=False,
            hazards=("needs_finite_cache",),
            rewrites=("contiguous_q", "repair_empty_rows"),
        ),
    )
    package, module, paged = "flash_attn_3", "flash_attn_interface", True
    get = "build flash-attention/hopper (python setup.py install)"

    def distribution(self) -> Distribution | None:
        return next(iter(foreign.distributions(self.package)), None)

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (f"{self.package} is not installed; {self.get}",)
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.fa3.kernel import GatheredDecode, PagedDecode

        module = foreign.load(self.module, self.distribution())
        return (PagedDecode if self.paged else GatheredDecode)(module, key)

    def peer_call(self, case: Case) -> Callable[[], Tensor]:
        """On q and keys laid out beforehand; without paging that is an advantage to it."""
        from flashmla_hub.backends.fa3.kernel import peer_call

        return peer_call(foreign.load(self.module, self.distribution()), case, self.paged)


class FA3Gathered(FA3Paged):
    """The forward-only wheel, on a contiguous copy of the keys that holds no garbage."""

    name = "fa3_gathered"
    worth = 15
    info = BackendInfo(
        summary="FlashAttention-3, forward-only wheel: dense decode on gathered keys",
        vendor="NVIDIA",
        package="fa3-fwd",
        versions="0.0.3",
        source="https://pypi.org/project/fa3-fwd",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            s_q=between(1, 16),
            h_q=ANY,
            page_block_size=ANY,
            kv_strides=(PACKED, PAGE_STRIDED, TOKEN_STRIDED),
            cuda_graph=True,
            torch_compile=True,
            empty_rows=False,
            alignment=16,
            rewrites=("contiguous_q", "repair_empty_rows"),
        ),
    )
    package, module, paged = "fa3-fwd", "fa3_fwd_interface", False
    get = "pip install fa3-fwd"


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (FA3Paged(), FA3Gathered())

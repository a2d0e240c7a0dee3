"""MetaX: one distribution, ``flash_mla`` stamped ``+metax...``, from either of two repositories.

MetaX-MACA/FlashMLA (2025-03) has the first generation's interface and leaves its metadata
uninitialised; MetaX-MACA/mcFlashMLA has the second's, real metadata, and sparse attention. The
positional call of the dense kernel is the same. Both step through pages and tokens by the strides
of the cache, and both read the block table at -1 for a row of length 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import owners, signature
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import Capabilities, DeviceClass, between, one_of
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import (
    PACKED,
    PAGE_STRIDED,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
    KernelKey,
)

FLASHMLA_HUB_PROTOCOL = 2

DEVICES = (DeviceClass("metax"),)
GET = (
    "install MetaX's wheel for your MACA release (flash_mla ...+metax... from MetaX's developer "
    "site), or build https://github.com/MetaX-MACA/mcFlashMLA in the MACA image"
)


class MetaX(Port):
    """Dense decode of FlashMLA and mcFlashMLA."""

    name = "metax"
    worth = 70
    info = BackendInfo(
        summary="MetaX's FlashMLA and mcFlashMLA: dense decode",
        vendor="MetaX",
        package="flash_mla",
        versions="1.0.1+metax...",
        source="https://github.com/MetaX-MACA/mcFlashMLA (d68bb97), MetaX-MACA/FlashMLA (0cb1a11)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            s_q=between(1),
            h_q=between(1, 128),
            page_block_size=one_of(*(1 << n for n in range(11))),
            kv_strides=(PACKED, PAGE_STRIDED, TOKEN_STRIDED),
            q_strides=(PACKED, TOKEN_STRIDED),
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=("split_pages", "repair_empty_rows"),
        ),
    )

    def distribution(self) -> Distribution | None:
        return owners.find("metax")

    def missing(self) -> tuple[str, ...]:
        if self.distribution() is None:
            return (
                f"MetaX's flash_mla is not installed: found {owners.describe_installed()}; {GET}",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends._ports.flash_mla import DenseKernel

        return DenseKernel(foreign.load("flash_mla", self.distribution()), key)


class MetaXSparse(MetaX):
    """Sparse decode and prefill of mcFlashMLA."""

    name = "metax_sparse"
    info = BackendInfo(
        summary="MetaX's mcFlashMLA: sparse decode and sparse prefill",
        vendor="MetaX",
        package="flash_mla",
        versions="1.0.1+metax..., built from mcFlashMLA",
        source="https://github.com/MetaX-MACA/mcFlashMLA (d68bb97)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            op=SPARSE_DECODE,
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            s_q=between(2),
            h_q=between(64, 128),  # the port takes s_q > 1 from 64 heads on
            page_block_size=one_of(*(1 << n for n in range(11))),
            causal=(False,),
            topk=between(64, None, 64),
            topk_length=True,
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=("pad_topk", "repair_empty_rows"),
        ),
        Capabilities(
            op=SPARSE_DECODE,
            devices=DEVICES,
            dtypes=("bfloat16", "float16"),
            h_q=between(1, 128),
            page_block_size=one_of(*(1 << n for n in range(11))),
            causal=(False,),
            topk=between(64, None, 64),
            topk_length=True,
            plans_per_call=True,
            alignment=16,
            empty_rows=False,
            rewrites=("pad_topk", "fold_s_q", "repair_empty_rows"),
        ),
        Capabilities(
            op=SPARSE_PREFILL,
            devices=DEVICES,
            h_q=between(64, None, 64),
            page_block_size=one_of(1),
            causal=(False,),
            topk=between(64, None, 64),
            topk_length=True,
            alignment=16,
            empty_rows=False,
            lse_base="2",
            rewrites=("pad_heads", "pad_topk", "lse_base", "repair_empty_rows"),
        ),
    )

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return super().missing()
        taken = signature.parameters(
            distribution, "flash_mla/flash_mla_interface.py", "flash_mla_with_kvcache"
        )
        if taken is not None and "indices" not in taken:
            return (
                f"flash_mla {distribution.version} is built from MetaX-MACA/FlashMLA, which has no "
                "sparse attention; build https://github.com/MetaX-MACA/mcFlashMLA instead",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.metax.sparse import KERNELS

        return KERNELS[key.op](foreign.load("flash_mla", self.distribution()), key)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (MetaX(), MetaXSparse())

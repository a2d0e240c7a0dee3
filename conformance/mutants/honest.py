"""Two honest backends: one serves the whole contract, one refuses most of it."""

from __future__ import annotations

import inspect
from typing import Any

from flashmla_hub.backend import Backend, BackendInfo, BoundKernel, PositionalKernel
from flashmla_hub.capabilities import ANY, Capabilities, unsupported_reasons
from flashmla_hub.conformance.mutants import formats, kernel
from flashmla_hub.conformance.mutants.kernel import DTYPES, HonestKernel
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import (
    PACKED,
    PAGE_STRIDED,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
    KernelKey,
)

STRIDES = (PACKED, PAGE_STRIDED, TOKEN_STRIDED)

_SPARSE: dict[str, Any] = {
    "s_q": ANY, "topk": ANY, "topk_length": True, "attn_sink": True, "page_block_size": ANY,
    "batch_invariant": True, "kv_strides": STRIDES, "q_strides": STRIDES, "causal": (False,),
}  # fmt: skip
_EXTRA: dict[str, Any] = {
    "extra_topk": ANY, "extra_page_block_size": ANY, "extra_topk_length": True,
}  # fmt: skip

_DENSE: dict[str, Any] = {
    "s_q": ANY, "page_block_size": ANY, "batch_invariant": True, "kv_strides": STRIDES,
    "q_strides": STRIDES, "torch_compile": True,
}  # fmt: skip

FULL = (
    Capabilities(
        dtypes=tuple(DTYPES), head_dims=((576, 512), (512, 512), (320, 256)), h_kv=ANY, **_DENSE
    ),
    Capabilities(kv_formats=("v32",), **_DENSE),
    Capabilities(kv_formats=("model1",), head_dims=((512, 512),), **_DENSE),
    Capabilities(op=SPARSE_DECODE, kv_formats=("v32",), **_SPARSE, **_EXTRA),
    Capabilities(
        op=SPARSE_DECODE, kv_formats=("model1",), head_dims=((512, 512),), **_SPARSE, **_EXTRA
    ),
    Capabilities(op=SPARSE_DECODE, kv_formats=("dense",), **_SPARSE, **_EXTRA),
    Capabilities(op=SPARSE_PREFILL, h_kv=ANY, head_dims=((576, 512), (512, 512)), **_SPARSE),
)

HALF = (Capabilities(s_q=ANY, kv_strides=STRIDES, q_strides=STRIDES),)


class HonestBackend(Backend):
    """Serves what ``declares`` names with ``kernel``, and refuses the rest itself."""

    name = "honest"
    version = "1"
    info = BackendInfo(summary="the selftest's reference in plain torch")
    kernel: type[HonestKernel] = HonestKernel
    declares: tuple[Capabilities, ...] = FULL

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return self.declares

    def files(self) -> tuple[str, ...]:
        return (__file__, kernel.__file__, formats.__file__)

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(self.declares, key, device)
        if reasons:
            feature, _, rest = reasons[0].partition("=")
            value, _, accepted = rest.partition(": takes ")
            raise NotSupportedError(self.name, feature, value, accepted)
        kernel = self.kernel(key)
        by_position = len(inspect.signature(self.kernel.run).parameters) > 2
        if by_position and self.kernel.run is not HonestKernel.run:
            return PositionalKernel(kernel, key.op)  # written for plugin protocol 1
        return kernel


class HalfBackend(HonestBackend):
    """Honest and small: bf16 576/512, page 64, one kv head, no sparse call, nothing optional."""

    name = "honest_half"
    declares = HALF

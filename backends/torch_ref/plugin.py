"""Declares the backend ``torch``; its kernels are imported by the first bind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flashmla_hub import kv_format
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.capabilities import ANY, NONE, Capabilities, one_of, unsupported_reasons
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

HEAD_DIMS = ((576, 512), (512, 512), (320, 256))
DTYPES = ("bfloat16", "float16", "float32")


def _declare(device: DeviceInfo, op: str, kv_formats: tuple[str, ...] = ("dense",)) -> Capabilities:
    """What the backend takes for ``op``: everything the contract has.

    FP8 layouts bring their own head dims and one KV head; a layout that keeps its scales page by
    page cannot have a free stride between tokens.
    """
    names = [name for name in kv_formats if name != "dense"]
    layouts = [kv_format.get(kv_format.caches(name)[0]) for name in names]
    sparse, decode = op != DENSE_DECODE, op == SPARSE_DECODE
    strides = (PACKED, PAGE_STRIDED, TOKEN_STRIDED)
    return Capabilities(
        op=op,
        dtypes=DTYPES,
        head_dims=tuple(dims for layout in layouts for dims in layout.head_dims) or HEAD_DIMS,
        s_q=ANY,
        h_q=ANY,
        h_kv=one_of(1) if layouts else ANY,
        page_block_size=ANY,
        kv_formats=kv_formats,
        causal=(False,) if sparse else (False, True),
        topk=ANY if sparse else NONE,
        topk_length=sparse,
        attn_sink=sparse,
        extra_topk=ANY if decode else NONE,
        extra_page_block_size=ANY if decode else NONE,
        extra_topk_length=decode,
        # Rows are computed one by one on the CPU alone (attention.rows_at_once).
        batch_invariant=device.type == "cpu",
        kv_strides=strides[:2] if any(layout.paged_scales for layout in layouts) else strides,
        q_strides=(PACKED, TOKEN_STRIDED),
        out_strides=(PACKED, TOKEN_STRIDED),
        cuda_graph=True,
        torch_compile=True,
    )


class TorchBackend(Backend):
    """Correct everywhere, fast nowhere: what runs where nothing better does."""

    name = "torch"
    version = "1"
    info = BackendInfo(
        summary="plain torch operations, the whole contract on any device torch runs on",
        package="torch",
        versions=">=2.6",
    )

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        alone = [(name,) for name in ("dense", *kv_format.IDS) if name not in kv_format.PAIRS]
        pairs = [(name,) for name in kv_format.PAIRS]  # two caches: sparse calls alone have them
        return (
            *(_declare(device, DENSE_DECODE, names) for names in alone),
            *(_declare(device, SPARSE_DECODE, names) for names in (*alone, *pairs)),
            _declare(device, SPARSE_PREFILL),
        )

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        return 10

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(self.capabilities(device), key, device)
        if reasons:
            raise NotSupportedError(self.name, "request", key.summary(), "; ".join(reasons))
        from flashmla_hub.backends.torch_ref.kernels import KERNELS

        return KERNELS[key.op](key)

    def files(self) -> tuple[str, ...]:
        return tuple(sorted(str(path) for path in Path(__file__).parent.glob("*.py")))


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (TorchBackend(),)

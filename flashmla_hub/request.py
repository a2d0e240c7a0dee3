"""The hashable facts of a call: ``KernelKey`` (what bind compiles for), ``ChoiceKey`` (what the
choice may look at besides). Neither holds lengths: those live on the device (contract C1.4)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from flashmla_hub.errors import InvalidRequestError

DENSE_DECODE = "dense_decode"
SPARSE_DECODE = "sparse_decode"
SPARSE_PREFILL = "sparse_prefill"
OPS = (DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL)

PACKED = "packed"
PAGE_STRIDED = "page_strided"
TOKEN_STRIDED = "token_strided"


@dataclass(frozen=True)
class KernelKey:
    """Everything a kernel may be compiled for; no batch, no lengths.

    Attributes:
        op: ``dense_decode``, ``sparse_decode`` or ``sparse_prefill``.
        s_q: query tokens per request; 1 for sparse_prefill, where queries are the batch.
        h_q, h_kv: query and KV heads, h_q % h_kv == 0.
        d_qk, d_v: head dims of q/K and of V.
        page_block_size: tokens per page; 1 for sparse_prefill (kv is one flat array).
        dtype: of q and out: ``bfloat16``, ``float16`` or ``float32``.
        kv_format: ``dense`` (K in the dtype of q) or a layout id of ``kv_format`` (contract C3);
            of two caches in layouts of their own, the id of both.
        causal: bottom-right aligned mask; False whenever it changes nothing (s_q == 1).
        topk: width of indices, 0 for a dense call.
        topk_length, attn_sink: whether that optional tensor is given.
        extra_topk, extra_page_block_size, extra_topk_length: the second cache (0/0/False: none).
        batch_invariant: a row's bits must not depend on the rest of the batch (contract C1.13).
        kv_strides, extra_kv_strides: ``packed``, ``page_strided`` (free stride between pages) or
            ``token_strided`` (free stride between tokens too), of each cache.
        q_strides, out_strides: ``packed`` or ``token_strided`` (any but the last dimension's, which
            is contiguous).
        q_alignment, kv_alignment, extra_kv_alignment, out_alignment: bytes (1, 2, 4, 8 or 16) that
            the tensor's base address and strides are multiples of; dimensions of size 1 and the
            last one aside, and token strides that a page-wise layout fixes. 16 for a tensor that
            is not there.
    """

    op: str = DENSE_DECODE
    s_q: int = 1
    h_q: int = 128
    h_kv: int = 1
    d_qk: int = 576
    d_v: int = 512
    page_block_size: int = 64
    dtype: str = "bfloat16"
    kv_format: str = "dense"
    causal: bool = False
    topk: int = 0
    topk_length: bool = False
    attn_sink: bool = False
    extra_topk: int = 0
    extra_page_block_size: int = 0
    extra_topk_length: bool = False
    batch_invariant: bool = False
    kv_strides: str = PACKED
    q_strides: str = PACKED
    extra_kv_strides: str = PACKED
    out_strides: str = PACKED
    q_alignment: int = 16
    kv_alignment: int = 16
    extra_kv_alignment: int = 16
    out_alignment: int = 16

    @property
    def alignment(self) -> int:
        """16 or 1, of q and k_cache together: what plugin protocol 1 has instead of a field for
        each tensor."""
        return 16 if min(self.q_alignment, self.kv_alignment) >= 16 else 1

    def with_(self, **changes: Any) -> KernelKey:
        return replace(self, **changes)

    def summary(self) -> str:
        """One line with the facts that differ from the neutral request; for logs and errors."""
        parts = [f"{self.op} {self.dtype} s_q={self.s_q} h_q={self.h_q} h_kv={self.h_kv}"]
        parts.append(f"d={self.d_qk}/{self.d_v} page={self.page_block_size}")
        neutral = KernelKey()
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value != getattr(neutral, name):
                parts.append(f"{name}={value}")
        return " ".join(parts)


_OPTIONAL = (
    "kv_format", "causal", "topk", "topk_length", "attn_sink", "extra_topk",
    "extra_page_block_size", "extra_topk_length", "batch_invariant", "kv_strides", "q_strides",
    "extra_kv_strides", "out_strides", "q_alignment", "kv_alignment", "extra_kv_alignment",
    "out_alignment",
)  # fmt: skip


_MAY_BE_0 = ("topk", "extra_topk", "extra_page_block_size")


def check_key(key: KernelKey) -> KernelKey:
    """A key that somebody wrote by hand, if its numbers are those of a request.

    Raises:
        InvalidRequestError: naming the field. Declarations may then rely on types and sizes; a
            word that nobody knows (an op, a dtype) is theirs to refuse.
    """
    for item in fields(KernelKey):
        name, value, default = item.name, getattr(key, item.name), item.default
        if type(value) is not type(default):
            raise InvalidRequestError(f"KernelKey.{name}", repr(value), type(default).__name__)
        if name.endswith("_alignment") and value not in (1, 2, 4, 8, 16):
            raise InvalidRequestError(f"KernelKey.{name}", value, "1 | 2 | 4 | 8 | 16")
        if type(value) is int and value < (0 if name in _MAY_BE_0 else 1):
            least = 0 if name in _MAY_BE_0 else 1
            raise InvalidRequestError(f"KernelKey.{name}", value, f"{least} or more")
    if key.h_q % key.h_kv:
        raise InvalidRequestError("KernelKey.h_q % h_kv", f"{key.h_q} % {key.h_kv}", "0")
    return key


def size_class(n: int) -> int:
    """The smallest power of two >= n (0 for 0): batches and capacities are looked at by class."""
    return 0 if n <= 0 else 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class ChoiceKey:
    """What the choice of a backend may look at: the kernel's facts and two size classes.

    ``capacity_class`` is the class of block_table width * page_block_size, in tokens
    (topk for sparse calls). Both are 0 with ``batch_invariant``: then no choice may depend
    on what else is in the batch.
    """

    kernel: KernelKey
    batch_class: int = 1
    capacity_class: int = 0

    def __str__(self) -> str:
        return f"{self.kernel.summary()} batch<={self.batch_class} s_k<={self.capacity_class}"


def choice_key(kernel: KernelKey, batch: int, capacity: int) -> ChoiceKey:
    """The ChoiceKey of a call with ``batch`` rows and room for ``capacity`` tokens a row."""
    if kernel.batch_invariant:
        return ChoiceKey(kernel, 0, 0)
    return ChoiceKey(kernel, size_class(batch), size_class(capacity))

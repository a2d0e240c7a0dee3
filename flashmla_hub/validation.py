"""From the arguments of a public call to a KernelKey, or InvalidRequestError (contract C5.1).

Nothing here reads a value from the device, and nothing knows a backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import checks, kv_format
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.request import (
    DENSE_DECODE,
    PACKED,
    PAGE_STRIDED,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    TOKEN_STRIDED,
    KernelKey,
)

HEAD_DIMS = ((576, 512), (512, 512), (320, 256))
_FLOATS = tuple(checks.DTYPE_NAMES)


@dataclass(frozen=True)
class Checked:
    """A valid call: its KernelKey, its rows, its room in tokens per row, and remarks on it."""

    key: KernelKey
    batch: Any
    capacity: Any
    scale: float
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """No row has room for a key: out 0 and lse +inf without asking a backend."""
        return bool(self.batch == 0 or self.capacity == 0)


def decode(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: Any,
    softmax_scale: Any = None,
    causal: Any = False,
    is_fp8_kvcache: Any = None,
    indices: Any = None,
    attn_sink: Any = None,
    extra_k_cache: Any = None,
    extra_indices: Any = None,
    topk_length: Any = None,
    extra_topk_length: Any = None,
    *,
    batch_invariant: Any = False,
    layout: Any = None,
    aligned: bool = True,
) -> Checked:
    """Check a decode call, dense or sparse (``indices`` given).

    ``aligned``: whether the base addresses are multiples of 16 bytes (a symbolic tensor has none).
    """
    checks.no_grad(q=q, k_cache=k_cache, extra_k_cache=extra_k_cache)
    checks.tensor("q", q, ("batch", "s_q", "h_q", "d_qk"), _FLOATS)
    checks.last_contiguous("q", q)
    batch, s_q, h_q, d_qk = q.shape
    _positive("q.shape", q, "s_q", s_q)
    _positive("q.shape", q, "h_q", h_q)
    d_v = _head_dims(d_qk, head_dim_v)
    name, notes = _kv_format(q, k_cache, is_fp8_kvcache, layout, d_qk, d_v)
    h_kv, page = _cache("k_cache", k_cache, q, name, d_qk, batch)
    _groups(h_q, h_kv)
    causal = checks.flag("causal", causal)
    facts: dict[str, Any] = {}
    if indices is None:
        for label, value in (
            ("attn_sink", attn_sink),
            ("extra_k_cache", extra_k_cache),
            ("extra_indices_in_kvcache", extra_indices),
            ("topk_length", topk_length),
            ("extra_topk_length", extra_topk_length),
        ):
            if value is not None:
                raise InvalidRequestError(label, "a tensor", "None in a dense call (no indices)")
        _table(q, block_table, cache_seqlens, batch)
        capacity = block_table.shape[1] * page
        facts["causal"] = causal and s_q > 1
    else:
        if causal:
            raise InvalidRequestError("causal", True, "False with indices (contract C4.0)")
        _indices("indices", indices, q, (batch, s_q, "topk"))
        _optional("topk_length", topk_length, q, (batch,), torch.int32)
        _optional("attn_sink", attn_sink, q, (h_q,), torch.float32)
        facts.update(
            topk=indices.shape[-1],
            topk_length=topk_length is not None,
            attn_sink=attn_sink is not None,
        )
        facts.update(
            _extra(q, extra_k_cache, extra_indices, extra_topk_length, name, d_qk, batch, s_q, h_kv)
        )
        capacity = facts["topk"] + facts["extra_topk"]
    key = KernelKey(
        op=DENSE_DECODE if indices is None else SPARSE_DECODE,
        s_q=s_q,
        h_q=h_q,
        h_kv=h_kv,
        d_qk=d_qk,
        d_v=d_v,
        page_block_size=page,
        dtype=checks.DTYPE_NAMES[q.dtype],
        kv_format=name,
        batch_invariant=checks.flag("batch_invariant", batch_invariant),
        kv_strides=_kv_strides(k_cache, name),
        q_strides=PACKED if q.is_contiguous() else TOKEN_STRIDED,
        alignment=16 if aligned and _aligned(q, 3) and _aligned(k_cache, 3) else 1,
        **facts,
    )
    scale = checks.scale("softmax_scale", softmax_scale, d_qk)
    return Checked(key, batch, capacity, scale, notes)


def prefill(
    q: Any,
    kv: Any,
    indices: Any,
    sm_scale: Any,
    d_v: Any = 512,
    attn_sink: Any = None,
    topk_length: Any = None,
    *,
    batch_invariant: Any = False,
    aligned: bool = True,
) -> Checked:
    """Check a sparse prefill call (contract C4.3)."""
    checks.no_grad(q=q, kv=kv)
    checks.tensor("q", q, ("s_q", "h_q", "d_qk"), _FLOATS)
    checks.last_contiguous("q", q)
    s_q, h_q, d_qk = q.shape
    _positive("q.shape", q, "h_q", h_q)
    d_v = _head_dims(d_qk, d_v, "d_v")
    checks.tensor("kv", kv, ("s_kv", "h_kv", d_qk), (q.dtype,), q.device)
    checks.last_contiguous("kv", kv)
    h_kv = kv.shape[1]
    _positive("kv.shape", kv, "h_kv", h_kv)
    if s_q != 0:
        _positive("kv.shape", kv, "s_kv", kv.shape[0])
    _groups(h_q, h_kv)
    _indices("indices", indices, q, (s_q, h_kv, "topk"))
    _optional("topk_length", topk_length, q, (s_q,), torch.int32)
    _optional("attn_sink", attn_sink, q, (h_q,), torch.float32)
    packed = kv.stride(1) == d_qk or h_kv == 1
    packed = packed and (kv.shape[0] <= 1 or kv.stride(0) == h_kv * d_qk)
    key = KernelKey(
        op=SPARSE_PREFILL,
        h_q=h_q,
        h_kv=h_kv,
        d_qk=d_qk,
        d_v=d_v,
        page_block_size=1,
        dtype=checks.DTYPE_NAMES[q.dtype],
        topk=indices.shape[-1],
        topk_length=topk_length is not None,
        attn_sink=attn_sink is not None,
        batch_invariant=checks.flag("batch_invariant", batch_invariant),
        kv_strides=PACKED if packed else TOKEN_STRIDED,
        q_strides=PACKED if q.is_contiguous() else TOKEN_STRIDED,
        alignment=16 if aligned and _aligned(q, 2) and _aligned(kv, 2) else 1,
    )
    scale = checks.scale("sm_scale", sm_scale, d_qk)
    return Checked(key, s_q, indices.shape[-1], scale)


def output(name: str, value: Any, shape: tuple[Any, ...], dtype: torch.dtype, q: Tensor) -> None:
    """Check ``out=`` or ``lse_out=``."""
    checks.tensor(name, value, shape, (dtype,), q.device)


def no_overlap(outputs: dict[str, Tensor | None], inputs: dict[str, Tensor | None]) -> None:
    """Outputs share no memory with an input or with each other (contract C1.8)."""
    given = [(n, t) for n, t in outputs.items() if t is not None]
    others = [(n, t) for n, t in inputs.items() if t is not None]
    for position, (name, target) in enumerate(given):
        for other, tensor in [*others, *given[:position]]:
            if checks.overlaps(target, tensor):
                raise InvalidRequestError(name, f"memory shared with {other}", "memory of its own")


def values(checked: Checked, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor) -> None:
    """The debug switch ``check_values=True``: reads the device (contract C1.15)."""
    lens = cache_seqlens.cpu()
    for row, length in enumerate(lens.tolist()):
        if not 0 <= length <= checked.capacity:
            raise InvalidRequestError(
                f"cache_seqlens[{row}]",
                length,
                f"0..{checked.capacity}, what the table has room for",
            )
    page = checked.key.page_block_size
    used = (lens.long() + page - 1) // page
    table = block_table.cpu()
    column = torch.arange(table.shape[1])
    wrong = (column < used.unsqueeze(1)) & ((table < 0) | (table >= k_cache.shape[0]))
    if wrong.any():
        row, at = (int(i) for i in wrong.nonzero()[0])
        raise InvalidRequestError(
            f"block_table[{row}, {at}]", int(table[row, at]), f"0..{k_cache.shape[0] - 1}"
        )


def _positive(name: str, value: Tensor, label: str, size: Any) -> None:
    if size < 1:
        raise InvalidRequestError(name, tuple(value.shape), f"{label} >= 1")


def _head_dims(d_qk: Any, d_v: Any, label: str = "head_dim_v") -> int:
    dims = " | ".join(f"{a}/{b}" for a, b in HEAD_DIMS)
    if isinstance(d_v, bool) or not isinstance(d_v, int):
        raise InvalidRequestError(label, repr(d_v), f"an int; d_qk/{label} of {dims}")
    for known_qk, known_v in HEAD_DIMS:
        if d_qk == known_qk and d_v == known_v:
            return known_v
    raise InvalidRequestError(f"q.shape[-1]/{label}", f"{d_qk}/{d_v}", dims)


def _kv_format(
    q: Tensor, k_cache: Any, is_fp8: Any, layout: Any, d_qk: Any, d_v: int
) -> tuple[str, tuple[str, ...]]:
    if is_fp8 is not None:
        checks.flag("is_fp8_kvcache", is_fp8)
    checks.tensor("k_cache", k_cache, ("num_blocks", "page_block_size", "h_kv", "d"))
    one_byte = k_cache.dtype in checks.ONE_BYTE
    if is_fp8 is None:
        is_fp8 = one_byte
    if is_fp8 != one_byte:
        want = "a 1-byte dtype" if is_fp8 else "the dtype of q"
        raise InvalidRequestError(
            "k_cache.dtype", k_cache.dtype, f"{want} with is_fp8_kvcache={is_fp8}"
        )
    if not is_fp8:
        if layout not in (None, "dense"):
            raise InvalidRequestError("kv_format", layout, "None or 'dense' for this k_cache.dtype")
        return "dense", ()
    if layout is not None and not isinstance(layout, str):
        raise InvalidRequestError("kv_format", repr(layout), "the id of a layout, a str, or None")
    found = kv_format.get(kv_format.default_for(d_qk) if layout is None else layout.lower())
    if (d_qk, d_v) != (found.d_qk, found.d_v):
        raise InvalidRequestError(
            f"q.shape[-1]/head_dim_v with kv_format={found.name}",
            f"{d_qk}/{d_v}",
            f"{found.d_qk}/{found.d_v}",
        )
    note = f"kv_format {found.name} by default for d_qk {d_qk}; name it to be sure"
    return found.name, (note,) if layout is None else ()


def _cache(label: str, cache: Any, q: Tensor, name: str, d_qk: Any, batch: Any) -> tuple[Any, Any]:
    fp8 = name != "dense"
    width = kv_format.get(name).bytes_per_token if fp8 else d_qk
    dtypes = checks.ONE_BYTE if fp8 else (q.dtype,)
    shape = ("num_blocks", "page_block_size", 1 if fp8 else "h_kv", width)
    checks.tensor(label, cache, shape, dtypes, q.device)
    checks.last_contiguous(label, cache)
    _positive(f"{label}.shape", cache, "page_block_size", cache.shape[1])
    _positive(f"{label}.shape", cache, "h_kv", cache.shape[2])
    if batch != 0:
        _positive(f"{label}.shape", cache, "num_blocks", cache.shape[0])
    return cache.shape[2], cache.shape[1]


def _groups(h_q: Any, h_kv: Any) -> None:
    if h_q % h_kv != 0:
        raise InvalidRequestError("h_q % h_kv", f"{h_q} % {h_kv}", "0: whole groups of query heads")


def _table(q: Tensor, block_table: Any, cache_seqlens: Any, batch: Any) -> None:
    checks.tensor("block_table", block_table, (batch, "max_blocks"), (torch.int32,), q.device)
    checks.last_contiguous("block_table", block_table)
    checks.tensor("cache_seqlens", cache_seqlens, (batch,), (torch.int32,), q.device)
    checks.last_contiguous("cache_seqlens", cache_seqlens)


def _indices(label: str, value: Any, q: Tensor, shape: tuple[Any, ...]) -> None:
    checks.tensor(label, value, shape, (torch.int32,), q.device)
    checks.last_contiguous(label, value)


def _optional(
    label: str, value: Any, q: Tensor, shape: tuple[Any, ...], dtype: torch.dtype
) -> None:
    if value is not None:
        checks.tensor(label, value, shape, (dtype,), q.device)
        checks.last_contiguous(label, value)


def _extra(
    q: Tensor, cache: Any, indices: Any, length: Any, name: str, d_qk: Any, batch: Any, s_q: Any,
    h_kv: Any,
) -> dict[str, Any]:  # fmt: skip
    if cache is None and indices is None:
        if length is not None:
            raise InvalidRequestError("extra_topk_length", "a tensor", "None without extra_k_cache")
        return {"extra_topk": 0}
    if cache is None or indices is None:
        label = "extra_k_cache" if cache is None else "extra_indices_in_kvcache"
        raise InvalidRequestError(label, "None", "given together with its counterpart, or neither")
    heads, page = _cache("extra_k_cache", cache, q, name, d_qk, batch)
    if heads != h_kv:
        raise InvalidRequestError("extra_k_cache.shape[2]", heads, f"{h_kv}, the h_kv of k_cache")
    _indices("extra_indices_in_kvcache", indices, q, (batch, s_q, "extra_topk"))
    _optional("extra_topk_length", length, q, (batch,), torch.int32)
    return {
        "extra_topk": indices.shape[-1],
        "extra_page_block_size": page,
        "extra_topk_length": length is not None,
    }


def _kv_strides(cache: Tensor, name: str) -> str:
    """Dimensions of size 1 have no stride that matters. Some layouts round packed pages up."""
    blocks, page, h_kv, width = cache.shape
    s_block, s_token, s_head, _ = cache.stride()
    if not (h_kv == 1 or s_head == width) or not (page == 1 or s_token == h_kv * width):
        return TOKEN_STRIDED
    packed = page * h_kv * width if name == "dense" else kv_format.get(name).page_stride(page)
    return PACKED if blocks <= 1 or s_block == packed else PAGE_STRIDED


def _aligned(x: Tensor, dims: int) -> bool:
    """Whether the strides that address rows are multiples of 16 bytes.

    For 1-byte caches only pages are looked at: their token layouts are fixed by C3.
    """
    size = x.element_size()
    dims = 1 if size == 1 else dims
    return all(x.stride(i) * size % 16 == 0 for i in range(dims) if x.shape[i] > 1)

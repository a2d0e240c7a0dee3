"""From the arguments of a public call to a KernelKey, or InvalidRequestError (contract C5.1).

Nothing here reads a value from the device, and nothing knows a backend. ``check_decode`` and
``check_prefill`` look at shapes, dtypes and scalars alone, so they also run on fake tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import checks, kv_format, strides
from flashmla_hub.call import OUTPUTS, DecodeArguments, PrefillArguments, tensors_of
from flashmla_hub.errors import InvalidRequestError, NotSupportedError
from flashmla_hub.layouts.named import layout_of_call, layouts_of
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

HEAD_DIMS = ((576, 512), (512, 512), (320, 256))
_FLOATS = tuple(checks.DTYPE_NAMES)


@dataclass(frozen=True)
class Checked:
    """A valid call: its KernelKey, its rows, its room in tokens per row, and remarks on it."""

    key: KernelKey
    batch: int
    capacity: int
    scale: float
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """No row has room for a key: out 0 and lse +inf without asking a backend."""
        return bool(self.batch == 0 or self.capacity == 0)


@dataclass(frozen=True)
class Facts:
    """What the checks found: fields of KernelKey by name, and what else a call is made of. Sizes
    are symbolic while torch.compile traces."""

    fields: dict[str, Any]
    batch: Any
    capacity: Any
    scale: float
    notes: tuple[str, ...] = ()


def decode(args: DecodeArguments) -> Checked:
    """Check a decode call on tensors in memory, dense or sparse (``indices`` given)."""
    facts = check_decode(args)
    first, second = layouts_of(facts.fields["kv_format"])
    key = KernelKey(
        **facts.fields,
        kv_strides=strides.cache_strides(args.k_cache, first),
        extra_kv_strides=strides.cache_strides(args.extra_k_cache, second),
        kv_alignment=strides.cache_alignment(args.k_cache, first),
        extra_kv_alignment=strides.cache_alignment(args.extra_k_cache, second),
        **_rows(args.q, args.out),
    )
    return Checked(key, facts.batch, facts.capacity, facts.scale, facts.notes)


def prefill(args: PrefillArguments) -> Checked:
    """Check a sparse prefill call on tensors in memory (contract C4.3)."""
    facts = check_prefill(args)
    key = KernelKey(
        **facts.fields,
        kv_strides=strides.flat_strides(args.kv),
        kv_alignment=strides.alignment(args.kv),
        **_rows(args.q, args.out),
    )
    return Checked(key, facts.batch, facts.capacity, facts.scale)


def check_decode(args: DecodeArguments) -> Facts:
    """All checks of a decode call that need no memory."""
    checks.no_grad(tensors_of(args))
    q, k_cache, indices = args.q, args.k_cache, args.indices
    checks.tensor("q", q, ("batch", "s_q", "h_q", "d_qk"), _FLOATS)
    checks.last_contiguous("q", q)
    batch, s_q, h_q, d_qk = q.shape
    _positive("q.shape", q, "s_q", s_q)
    _positive("q.shape", q, "h_q", h_q)
    d_v = _head_dims(d_qk, args.head_dim_v)
    name, notes = layout_of_call(args, d_qk, d_v)
    h_kv, page = _cache("k_cache", k_cache, q, layouts_of(name)[0], d_qk, batch)
    _groups(h_q, h_kv)
    causal = checks.flag("causal", args.causal)
    invariant = checks.flag("batch_invariant", args.batch_invariant)
    checks.flag("check_values", args.check_values)
    alias = checks.optional_flag("enable_batch_invariant", args.enable_batch_invariant)
    _later_generations(args, name)
    checks.text("backend", args.backend, "the name of a backend")
    sparse: dict[str, Any] = {}
    if indices is None:
        for label in ("attn_sink", "extra_k_cache", "extra_indices_in_kvcache", "topk_length",
                      "extra_topk_length"):  # fmt: skip
            if getattr(args, label) is not None:
                raise InvalidRequestError(label, "a tensor", "None in a dense call (no indices)")
        capacity = _table(args, batch) * page
    else:
        if causal:
            raise InvalidRequestError("causal", True, "False with indices (contract C4.0)")
        _int32("indices", indices, q, (batch, s_q, "topk"))
        sparse = _sparse(args, batch, h_q) | _extra(args, name, batch, h_kv)
        capacity = sparse["topk"] + sparse["extra_topk"]
    if args.extra_k_cache is None:  # the layout of a second cache says nothing then
        name = layouts_of(name)[0]
    _output("out", args.out, (batch, s_q, h_q, d_v), q.dtype, q)
    _output("lse_out", args.lse_out, (batch, h_q, s_q), torch.float32, q)
    fields = {
        "op": DENSE_DECODE if indices is None else SPARSE_DECODE,
        "s_q": s_q, "h_q": h_q, "h_kv": h_kv, "d_qk": d_qk, "d_v": d_v, "page_block_size": page,
        "dtype": checks.DTYPE_NAMES[q.dtype], "kv_format": name, "causal": causal and s_q > 1,
        "batch_invariant": invariant or bool(alias), **sparse,
    }  # fmt: skip
    scale = checks.scale("softmax_scale", args.softmax_scale, d_qk)
    return Facts(fields, batch, capacity, scale, notes)


def check_prefill(args: PrefillArguments) -> Facts:
    """All checks of a sparse prefill call that need no memory."""
    checks.no_grad(tensors_of(args))
    q, kv = args.q, args.kv
    checks.tensor("q", q, ("s_q", "h_q", "d_qk"), _FLOATS)
    checks.last_contiguous("q", q)
    s_q, h_q, d_qk = q.shape
    _positive("q.shape", q, "h_q", h_q)
    d_v = _head_dims(d_qk, args.d_v, "d_v")
    checks.tensor("kv", kv, ("s_kv", "h_kv", d_qk), (q.dtype,), q.device)
    checks.last_contiguous("kv", kv)
    h_kv = kv.shape[1]
    _positive("kv.shape", kv, "h_kv", h_kv)
    if s_q != 0:
        _positive("kv.shape", kv, "s_kv", kv.shape[0])
    _groups(h_q, h_kv)
    _int32("indices", args.indices, q, (s_q, h_kv, "topk"))
    checks.text("backend", args.backend, "the name of a backend")
    _output("out", args.out, (s_q, h_q, d_v), q.dtype, q)
    fields = {
        "op": SPARSE_PREFILL, "h_q": h_q, "h_kv": h_kv, "d_qk": d_qk, "d_v": d_v,
        "page_block_size": 1, "dtype": checks.DTYPE_NAMES[q.dtype],
        "batch_invariant": checks.flag("batch_invariant", args.batch_invariant),
        **_sparse(args, s_q, h_q),
    }  # fmt: skip
    scale = checks.scale("sm_scale", args.sm_scale, d_qk)
    return Facts(fields, s_q, args.indices.shape[-1], scale)


def no_overlap(args: DecodeArguments | PrefillArguments) -> None:
    """Outputs share no memory with an input or with each other (contract C1.8)."""
    given = tensors_of(args)
    outputs = [(n, t) for n, t in given.items() if n in OUTPUTS]
    inputs = [(n, t) for n, t in given.items() if n not in OUTPUTS]
    if isinstance(args, DecodeArguments) and args.indices is not None:  # ignored, never read
        inputs = [(n, t) for n, t in inputs if n not in ("block_table", "cache_seqlens")]
    for position, (name, target) in enumerate(outputs):
        for other, tensor in [*inputs, *outputs[:position]]:
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


def _rows(q: Tensor, out: Tensor | None) -> dict[str, Any]:
    """Strides and alignment of q and out. An out whose last dimension is strided is not handed to
    a kernel at all: the hub copies into it."""
    if out is not None and out.stride(-1) != 1:
        out = None
    return {
        "q_strides": strides.row_strides(q),
        "q_alignment": strides.alignment(q),
        "out_strides": strides.row_strides(out),
        "out_alignment": strides.alignment(out),
    }


def _positive(name: str, value: Tensor, label: str, size: Any) -> None:
    if size < 1:
        raise InvalidRequestError(name, tuple(value.shape), f"{label} >= 1")


def _head_dims(d_qk: Any, d_v: Any, label: str = "head_dim_v") -> int:
    dims = " | ".join(f"{a}/{b}" for a, b in HEAD_DIMS)
    if isinstance(d_v, bool) or not isinstance(d_v, int):
        raise InvalidRequestError(label, checks.describe(d_v), f"an int; d_qk/{label} of {dims}")
    for known_qk, known_v in HEAD_DIMS:
        if d_qk == known_qk and d_v == known_v:
            return known_v
    given = d_v if abs(d_v) < 1 << 31 else checks.describe(d_v)
    raise InvalidRequestError(f"q.shape[-1]/{label}", f"{d_qk}/{given}", dims)


def _later_generations(args: DecodeArguments, layout: str) -> None:
    """``use_legacy`` chooses between kernels of one package and means nothing here; the others
    change the result: ``descale_k`` belongs to the layout fp8 and is refused by name elsewhere, the
    others are until something takes them (contract C2.1b)."""
    checks.optional_flag("use_legacy", args.use_legacy)
    for name in ("descale_q", "descale_k"):
        value = getattr(args, name)
        if value is not None:
            checks.tensor(name, value, (1,), (torch.float32,), args.q.device)
            if name == "descale_q":
                raise NotSupportedError(
                    "flashmla_hub", name, "a tensor", "None: q is not quantised"
                )
            if layout != "fp8":
                accepted = f"None: {layout} holds its scales itself; a tensor with kv_format='fp8'"
                raise NotSupportedError("flashmla_hub", name, "a tensor", accepted)
    topk = args.indexer_topk
    if isinstance(topk, bool) or not isinstance(topk, int):
        raise InvalidRequestError("indexer_topk", checks.describe(topk), "0")
    if topk:
        raise NotSupportedError("flashmla_hub", "indexer_topk", checks.describe(topk), "0")


def _cache(label: str, cache: Any, q: Tensor, name: str, d_qk: Any, batch: Any) -> tuple[Any, Any]:
    fp8 = name != "dense"
    width = kv_format.get(name, d_qk).bytes_per_token if fp8 else d_qk
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


def _table(args: DecodeArguments, batch: Any) -> Any:
    """The width of the block table."""
    table = _int32("block_table", args.block_table, args.q, (batch, "max_blocks"))
    _int32("cache_seqlens", args.cache_seqlens, args.q, (batch,))
    return table.shape[1]


def _int32(label: str, value: Any, q: Tensor, shape: tuple[Any, ...]) -> Tensor:
    checks.tensor(label, value, shape, (torch.int32,), q.device)
    checks.last_contiguous(label, value)
    return value  # type: ignore[no-any-return]


def _sparse(args: DecodeArguments | PrefillArguments, rows: Any, h_q: Any) -> dict[str, Any]:
    """What both sparse ops share; their indices have been checked."""
    if args.topk_length is not None:
        _int32("topk_length", args.topk_length, args.q, (rows,))
    if args.attn_sink is not None:
        checks.tensor("attn_sink", args.attn_sink, (h_q,), (torch.float32,), args.q.device)
        checks.last_contiguous("attn_sink", args.attn_sink)
    assert args.indices is not None
    return {
        "topk": args.indices.shape[-1],
        "topk_length": args.topk_length is not None,
        "attn_sink": args.attn_sink is not None,
    }


def _extra(args: DecodeArguments, name: str, batch: Any, h_kv: Any) -> dict[str, Any]:
    cache, indices, length = (
        args.extra_k_cache,
        args.extra_indices_in_kvcache,
        (args.extra_topk_length),
    )
    if cache is None and indices is None:
        if length is not None:
            raise InvalidRequestError("extra_topk_length", "a tensor", "None without extra_k_cache")
        return {"extra_topk": 0}
    if cache is None or indices is None:
        label = "extra_k_cache" if cache is None else "extra_indices_in_kvcache"
        raise InvalidRequestError(label, "None", "given together with its counterpart, or neither")
    q = args.q
    heads, page = _cache("extra_k_cache", cache, q, layouts_of(name)[1], q.shape[-1], batch)
    if heads != h_kv:
        raise InvalidRequestError("extra_k_cache.shape[2]", heads, f"{h_kv}, the h_kv of k_cache")
    _int32("extra_indices_in_kvcache", indices, q, (batch, q.shape[1], "extra_topk"))
    if length is not None:
        _int32("extra_topk_length", length, q, (batch,))
    return {
        "extra_topk": indices.shape[-1],
        "extra_page_block_size": page,
        "extra_topk_length": length is not None,
    }


def _output(name: str, value: Any, shape: tuple[Any, ...], dtype: torch.dtype, q: Tensor) -> None:
    if value is not None:
        checks.tensor(name, value, shape, (dtype,), q.device)
        checks.one_place_each(name, value)

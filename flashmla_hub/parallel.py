"""Decode context parallelism: one row's KV cache sharded over the ranks of a process group.

A cache too large for one device is dealt out token by token. With W ranks and interleave I,
the token at position p lives on rank ``(p // I) % W`` at local position
``p // (W * I) * I + p % I``. Every rank holds the *same* block table: entry j names one page of
each rank, together a virtual page of ``W * page_block_size`` positions. These are the conventions
of vLLM, so a cache that an engine sharded can be read as it is.

One step of one layer, on every rank::

    q = gather_heads(q, group)                                  # all heads, this rank's keys
    table, lens = shard_rows(block_table, cache_seqlens, s_q, world_size, rank)
    out, lse = flash_mla_with_kvcache(rows of q, k_cache, table, lens, head_dim_v, ...)
    out, lse = merge_over_group(out, lse, group)                # this rank's heads, all keys

``decode_over_group`` does all four. Nothing here synchronises with the host, and any backend of
torch.distributed will do (tested with gloo; the collectives used are those NCCL offers too).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flashmla_hub.errors import InvalidRequestError

MODES = ("ag_rs", "a2a")

# torch 2.13 renames both and warns at every call of the old names; older torch has only those.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def local_seq_lens(seq_lens: Tensor, world_size: int, rank: int, interleave: int = 1) -> Tensor:
    """How many of each row's tokens live on ``rank``.

    Args:
        seq_lens: integer tensor of any shape, tokens over all ranks; negative counts as 0.
        world_size, rank: of the group that shares the cache.
        interleave: consecutive tokens dealt to one rank at a time (>= 1).

    Returns:
        int32 tensor of the same shape. Summed over the ranks it gives ``seq_lens``.
    """
    _check_shard(world_size, rank, interleave)
    lens = seq_lens.clamp(min=0)
    whole_rounds = lens // (world_size * interleave) * interleave
    rest = lens - whole_rounds * world_size - rank * interleave
    return (whole_rounds + rest.clamp(0, interleave)).to(torch.int32)


def local_slots(
    positions: Tensor,
    block_table: Tensor,
    world_size: int,
    rank: int,
    page_block_size: int,
    interleave: int = 1,
) -> Tensor:
    """The cache slot of each position on ``rank``, -1 where another rank holds it.

    Args:
        positions: (..., n) integer, positions within their row, >= 0.
        block_table: (..., max_blocks_per_seq) integer, the rows those positions belong to.
        page_block_size: tokens per page on one rank; a multiple of ``interleave``.

    Returns:
        (..., n) int64, ``page * page_block_size + offset`` or -1.
    """
    _check_shard(world_size, rank, interleave)
    if page_block_size % interleave:
        raise InvalidRequestError(
            "page_block_size", page_block_size, f"a multiple of interleave={interleave}"
        )
    local = positions // (world_size * interleave) * interleave + positions % interleave
    pages = block_table.gather(-1, (local // page_block_size).long()).long()
    slots = pages * page_block_size + local % page_block_size
    mine = positions // interleave % world_size == rank
    return torch.where(mine, slots, -1)


def shard_rows(
    block_table: Tensor,
    cache_seqlens: Tensor,
    s_q: int,
    world_size: int,
    rank: int,
    interleave: int = 1,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Block table and local lengths for one row per query token.

    A shard's length says nothing about which of its keys a query may see, so a causal mask on
    local lengths is wrong for every interleave. Each query therefore becomes a row of its own,
    with the length *it* may see (contract C7.2): call the kernel with
    ``q.reshape(batch * s_q, 1, h_q, d_qk)`` and ``causal=False``.

    Args:
        block_table: (batch, max_blocks_per_seq) int32.
        cache_seqlens: (batch,) int32, tokens over all ranks, the ``s_q`` new ones included.

    Returns:
        (batch * s_q, max_blocks_per_seq) int32 and (batch * s_q,) int32.
    """
    steps = torch.arange(s_q, device=cache_seqlens.device, dtype=cache_seqlens.dtype)
    hidden = s_q - 1 - steps if causal else torch.zeros_like(steps)
    visible = (cache_seqlens[:, None] - hidden).reshape(-1)
    table = block_table if s_q == 1 else block_table.repeat_interleave(s_q, 0)
    return table, local_seq_lens(visible, world_size, rank, interleave)


def gather_heads(q: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """All ranks' query heads, rank-major: (..., h, d) on each rank -> (..., h * W, d)."""
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return q
    q = q.resolve_neg()  # collectives send raw memory
    flat = q.contiguous().view(-1, q.shape[-1])  # gloo gathers along the first dimension only
    gathered = flat.new_empty((world_size * flat.shape[0], flat.shape[1]))
    _all_gather(gathered, flat, group=group)
    ranks = gathered.view(world_size, *q.shape).movedim(0, -3)
    return ranks.reshape(*q.shape[:-2], world_size * q.shape[-2], q.shape[-1])


def merge_over_group(
    out: Tensor,
    lse: Tensor,
    group: dist.ProcessGroup | None = None,
    mode: str = "ag_rs",
    wire_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Merge what the ranks computed on their shards; rank r keeps the r-th share of the heads.

    Both modes do their arithmetic in float32. ``a2a`` sends one message per pair of ranks with
    out and lse together; ``ag_rs`` (all-gather of lse, reduce-scatter of weighted out) suits
    fabrics that reduce in the network.

    Args:
        out: (batch, s_q, h_q, d_v), all heads over this rank's keys.
        lse: (batch, h_q, s_q) float32, natural logarithm. +inf (no visible key), -inf and NaN
            weigh nothing, and the ``out`` beside them is never used (contract C7.1).
        group: the process group; None is the default group. h_q must divide by its size.
        mode: ``ag_rs`` or ``a2a``.
        wire_dtype: what ``ag_rs`` reduces in. The dtype of ``out`` halves the traffic and adds a
            rounding at every hop of the reduction.

    Returns:
        out (batch, s_q, h_q / W, d_v) in its dtype and lse (batch, h_q / W, s_q) float32 over all
        keys. A row that is empty on every rank has out 0 and lse +inf.

    Raises:
        InvalidRequestError: on a wrong shape, dtype or mode, before any collective.
    """
    world_size = dist.get_world_size(group)
    _check_state(out, lse, mode, world_size)
    out, lse = out.resolve_neg(), lse.resolve_neg()  # collectives send raw memory
    if mode == "a2a":
        return _all_to_all(out, lse, group, world_size)
    return _gather_and_scatter(out, lse, group, world_size, wire_dtype)


def decode_over_group(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    head_dim_v: int,
    group: dist.ProcessGroup | None = None,
    *,
    mode: str = "ag_rs",
    interleave: int = 1,
    causal: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """``flash_mla_with_kvcache`` over a cache sharded across ``group``.

    Args:
        q: (batch, s_q, h_q, d_qk): this rank's heads, as tensor parallelism leaves them.
        k_cache: (num_blocks, page_block_size, 1, d_qk), this rank's shard.
        block_table: (batch, max_blocks_per_seq) int32, equal on all ranks.
        cache_seqlens: (batch,) int32, tokens over all ranks.
        mode, interleave: see :func:`merge_over_group` and the module.
        kwargs: passed on to ``flash_mla_with_kvcache`` (``softmax_scale``, ``backend``, ...).

    Returns:
        out (batch, s_q, h_q, head_dim_v) and lse (batch, h_q, s_q) of this rank's heads over all
        keys, as one device with the whole cache would return them.
    """
    from flashmla_hub import flash_mla_with_kvcache

    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    batch, s_q, _, d_qk = q.shape
    heads = gather_heads(q, group)
    rows = heads.reshape(batch * s_q, 1, heads.shape[2], d_qk)
    table, lens = shard_rows(block_table, cache_seqlens, s_q, world_size, rank, interleave, causal)
    out, lse = flash_mla_with_kvcache(rows, k_cache, table, lens, head_dim_v, **kwargs)
    out, lse = merge_over_group(out, lse, group, mode)
    lse = lse.view(batch, s_q, out.shape[2]).transpose(1, 2).contiguous()
    return out.view(batch, s_q, *out.shape[2:]), lse


def _all_to_all(
    out: Tensor, lse: Tensor, group: dist.ProcessGroup | None, world_size: int
) -> tuple[Tensor, Tensor]:
    from flashmla_hub.merge import merge_states

    d_v = out.shape[-1]
    rows = lse.transpose(1, 2).unsqueeze(-1)  # (batch, s_q, h_q, 1), beside its out
    as_wire = rows.contiguous().view(out.dtype)  # the bits of a float32: one message, not two
    sent = _by_rank(torch.cat([out, as_wire], dim=-1), world_size)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    outs = received[..., :d_v]
    lses = received[..., d_v:].contiguous().view(torch.float32)[..., 0].transpose(2, 3)
    return merge_states(outs.unbind(0), lses.unbind(0))


def _gather_and_scatter(
    out: Tensor,
    lse: Tensor,
    group: dist.ProcessGroup | None,
    world_size: int,
    wire_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    rank, share = dist.get_rank(group), lse.shape[1] // world_size
    gathered = lse.new_empty((world_size * lse.shape[0], *lse.shape[1:]))
    _all_gather(gathered, lse.contiguous(), group=group)
    lses = gathered.view(world_size, *lse.shape)
    lses = lses.masked_fill(lses.isnan() | (lses == torch.inf), -torch.inf)
    merged = torch.logsumexp(lses, 0)
    empty = merged == -torch.inf
    weight = (lses[rank] - merged).masked_fill(empty, -torch.inf).exp()
    weight = weight.transpose(1, 2).unsqueeze(-1)  # (batch, s_q, h_q, 1)
    part = (out.float() * weight).masked_fill(weight == 0, 0.0)  # never 0 * NaN
    sent = _by_rank(part.to(wire_dtype), world_size)
    received = sent.new_empty(sent.shape[1:])
    _reduce_scatter(received, sent.view(-1, *sent.shape[2:]), group=group)
    merged = merged.masked_fill(empty, torch.inf)
    return received.to(out.dtype), merged[:, rank * share : (rank + 1) * share].contiguous()


def _by_rank(x: Tensor, world_size: int) -> Tensor:
    """(batch, s_q, h, d) -> (W, batch, s_q, h / W, d), contiguous."""
    return x.unflatten(2, (world_size, -1)).movedim(2, 0).contiguous()


def _check_shard(world_size: int, rank: int, interleave: int) -> None:
    if not 0 <= rank < world_size:
        raise InvalidRequestError("rank", rank, f"0 <= rank < world_size={world_size}")
    if interleave < 1:
        raise InvalidRequestError("interleave", interleave, ">= 1")


def _check_state(out: Tensor, lse: Tensor, mode: str, world_size: int) -> None:
    if mode not in MODES:
        raise InvalidRequestError("mode", repr(mode), " or ".join(map(repr, MODES)))
    if out.dim() != 4:
        raise InvalidRequestError("out", tuple(out.shape), "(batch, s_q, h_q, d_v)")
    batch, s_q, h_q, _ = out.shape
    if tuple(lse.shape) != (batch, h_q, s_q) or lse.dtype != torch.float32:
        actual = f"{tuple(lse.shape)} {lse.dtype}"
        raise InvalidRequestError("lse", actual, f"{(batch, h_q, s_q)} torch.float32")
    if h_q % world_size:
        raise InvalidRequestError(
            "out", f"h_q={h_q}", f"a multiple of the group's size {world_size}"
        )

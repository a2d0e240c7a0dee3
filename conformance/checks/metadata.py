"""C2: metadata in all published forms, lengths that change in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from flashmla_hub import InvalidRequestError
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.oracle_torch import Oracle
from flashmla_hub.conformance.trial import NotClaimed, Trial, Wrong, raising

STALE = "stale metadata"
OTHER_CALL = "metadata of another call used"


def _has_hub_metadata(trial: Trial) -> None:
    if not trial.subject.has_back_door:
        raise NotClaimed("a bare function's metadata has the form of its own generation")
    trial.require()


def forms(trial: Trial) -> None:
    """C2.1: every published call returns (meta, None) that serves a call."""
    _has_hub_metadata(trial)
    call, key = trial.call, trial.case.key
    lengths, per_head = call.cache_seqlens, key.s_q * key.h_q // key.h_kv
    six = (lengths, per_head, key.h_kv, key.h_q, False, None)
    published: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}),
        ((lengths, per_head, key.h_kv), {}),
        (six, {}),
        ((), {"cache_seqlens": lengths, "num_heads_per_head_k": per_head,
              "num_heads_k": key.h_kv}),
        ((lengths,), {"num_q_tokens_per_head_k": per_head, "num_heads_k": key.h_kv,
                      "num_heads_q": key.h_q, "is_fp8_kvcache": False, "topk": None}),
    ]  # fmt: skip
    for args, kwargs in published:
        error = raising(lambda a=args, k=kwargs: trial.subject.metadata(call, *a, **k))  # type: ignore[misc]
        if error is not None:
            raise Wrong("C2.1", f"get_mla_metadata with {len(args)} positional and "
                        f"{sorted(kwargs)} raised {error!r}")  # fmt: skip
        meta, splits = trial.subject.metadata(call, *args, **kwargs)
        got = trial.run(call, tile_scheduler_metadata=meta, num_splits=splits)
        trial.judge(call, got)


def layers(trial: Trial) -> None:
    """C2.2: one metadata value serves all layers of a step: same table, other q and cache."""
    trial.require()
    call = trial.call
    meta = trial.metadata(call)
    for q, kv in ((call.q, call.kv), (call.q.flip(2), -call.kv), (-call.q, call.kv.flip(-1))):
        layer = call.with_(q=q.contiguous(), kv=kv.contiguous())
        trial.judge(layer, trial.run(layer, **meta), clause="C2.2")


def other_shape(trial: Trial) -> None:
    """C2.2: use with another shape is an error that says which field differs."""
    _has_hub_metadata(trial)
    call = trial.call
    meta = trial.metadata(call)
    trial.judge(call, trial.run(call, **meta))
    others = [("batch", rows_of(call, [0]))]
    if heads := _other_heads(trial):
        q = call.q[:, :, torch.arange(heads, device=call.device) % call.case.key.h_q]
        others.append(("h_q", call.with_(q=q.contiguous())))
    for field, other in others:
        error = raising(lambda c=other: trial.subject.run(c, **meta))  # type: ignore[misc]
        if not isinstance(error, InvalidRequestError) or field not in str(error):
            raise Wrong("C2.2", f"metadata used with another {field}: got {error!r}, expected "
                        f"InvalidRequestError naming {field}")  # fmt: skip


def _other_heads(trial: Trial) -> int | None:
    """Another number of heads that the subject takes; None for a port of a single one."""
    case, mine = trial.case, trial.case.key.h_q
    choices = (mine // 2, 2 * mine, 4 * mine, 8 * mine, 1, mine + 1, mine - 1)
    for heads in choices:
        other = replace(case, key=case.key.with_(h_q=heads)) if heads else case
        if heads and trial.subject.claim(other).accepted:
            return heads
    return None


def tensors(trial: Trial) -> None:
    """C2.1a: two int32 tensors that an engine copies into fixed buffers."""
    _has_hub_metadata(trial)
    call = trial.call
    lengths = call.cache_seqlens
    assert lengths is not None
    key = trial.case.key
    per_head = key.s_q * key.h_q // key.h_kv
    meta, splits = trial.subject.metadata(call, lengths, per_head, key.h_kv, as_tensors=True)
    for name, tensor, tail in (("metadata", meta, 8), ("num_splits", splits, None)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int32:
            raise Wrong("C2.1a", f"{name}: got {tensor!r}, expected an int32 tensor")
        if tail and (tensor.dim() != 2 or tensor.shape[1] != tail):
            raise Wrong("C2.1a", f"{name}: got {tuple(tensor.shape)}, expected (rows, 8)")
    if tuple(splits.shape) != (trial.case.batch + 1,):
        raise Wrong("C2.1a", f"num_splits: got {tuple(splits.shape)}, expected (batch + 1,)")
    fixed = torch.empty_like(meta).copy_(meta), torch.empty_like(splits).copy_(splits)
    for _ in range(2):
        got = trial.run(call, tile_scheduler_metadata=fixed[0], num_splits=fixed[1])
        trial.judge(call, got, clause="C2.1a")


def in_place(trial: Trial) -> None:
    """C2.3: lengths that change in place, under one metadata value, give right answers."""
    by_data = trial.case.variant == "data"
    if by_data and "plans_per_metadata" in trial.subject.hazards():
        raise NotClaimed("declares the hazard plans_per_metadata: such writes need new metadata")
    trial.require()
    call = trial.call
    lengths = call.cache_seqlens
    assert lengths is not None
    full = lengths.clone()
    shorter = (full * 3 // 5).clamp(min=1)
    meta = trial.metadata(call)
    trial.judge(call, trial.run(call, **meta))
    previous = full
    for now in (shorter, full, shorter.flip(0).minimum(full)):
        if by_data:
            lengths.data[:] = now
        else:
            lengths.copy_(now)
        got = trial.run(call, **meta)
        stale = Oracle(call.with_(cache_seqlens=previous)).all()
        first = Oracle(call.with_(cache_seqlens=full)).all()
        try:
            trial.judge(call, got, Oracle(call).all(), clause="C2.3")
        except Wrong as error:
            if any(_is(trial, call, got, old) for old in (stale, first)):
                raise Wrong("C2.3", f"gives the answer for the lengths before: {error.reason}",
                            STALE, error.metrics) from error  # fmt: skip
            raise
        previous = now
    lengths.copy_(full)


def _is(trial: Trial, call: Call, got: Any, want: Any) -> bool:
    try:
        trial.judge(call, got, want)
    except Wrong:
        return False
    return True


def two_calls(trial: Trial) -> None:
    """C2.3: two calls in turns, each with its own metadata and lengths."""
    trial.require()
    call = trial.call
    lengths = call.cache_seqlens
    assert lengths is not None
    other = call.with_(cache_seqlens=(lengths // 2).clamp(min=1), q=-call.q)
    pairs = [(c, trial.metadata(c), Oracle(c).all()) for c in (call, other)]
    for _ in range(2):
        for (mine, meta, want), (_, _, foreign) in zip(pairs, pairs[::-1], strict=True):
            got = trial.run(mine, **meta)
            try:
                trial.judge(mine, got, want, clause="C2.3")
            except Wrong as error:
                lent = mine.with_(cache_seqlens=(other if mine is call else call).cache_seqlens)
                if _is(trial, mine, got, foreign) or _is(trial, mine, got, Oracle(lent).all()):
                    raise Wrong("C2.3", f"gives the answer of the other call: {error.reason}",
                                OTHER_CALL, error.metrics) from error  # fmt: skip
                raise


def rows_of(call: Call, rows: list[int]) -> Call:
    """The call for some of its rows, in the order given."""
    index = torch.tensor(rows, device=call.device)
    per_row = ("q", "block_table", "cache_seqlens", "indices", "topk_length", "extra_indices",
               "extra_topk_length")  # fmt: skip
    parts = {name: getattr(call, name) for name in per_row}
    return call.with_(**{name: part[index] for name, part in parts.items() if part is not None})

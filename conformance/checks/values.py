"""Values against the oracle, and what holds on every call beside them."""

from __future__ import annotations

from flashmla_hub import InvalidRequestError
from flashmla_hub.conformance.trial import (
    NOT_DETERMINISTIC,
    SWALLOWS,
    NotClaimed,
    Trial,
    Wrong,
    raising,
)

ONE_CALL = 256  # rows


def values(trial: Trial) -> None:
    """C1.8-C1.13: right values, inputs unchanged, all written in place, twice the same bits."""
    trial.require()
    call = trial.call
    before = call.snapshot()
    meta = trial.metadata(call)
    if trial.case.batch >= ONE_CALL and trial.takes_out():  # twice would take twice as long
        trial.judge(call, trial.run_in_place(call, **meta))
        trial.unchanged(call, before)
        return
    got = trial.run(call, **meta)
    trial.unchanged(call, before)
    try:
        trial.judge(call, got)
    except Wrong as error:
        if not error.diagnosis and trial.takes_out():
            trial.run_in_place(call, **meta)  # memory never written shows there, by its poison
        raise
    if trial.takes_out():
        again = trial.run_in_place(call, **meta)
        trial.unchanged(call, before)
        trial.judge(call, again)
    else:
        again = trial.run(call, **meta)
    trial.same_bits(got, again, "C1.13", NOT_DETERMINISTIC, "the same call again")


def check_values(trial: Trial) -> None:
    """C1.15: with ``check_values=True`` values that cannot be right raise."""
    if not trial.subject.has_back_door:
        raise NotClaimed("a bare function has no check_values")
    trial.require()
    call, size = trial.call, trial.case.key.page_block_size
    trial.judge(call, trial.run(call, check_values=True))
    assert call.block_table is not None and call.cache_seqlens is not None
    lengths, table = call.cache_seqlens, call.block_table
    for label, changed in (
        ("length -1", call.with_(cache_seqlens=lengths.clone().fill_(-1))),
        ("length past the table", call.with_(
            cache_seqlens=lengths.clone().fill_(table.shape[1] * size + 1))),
        ("page id past the cache", call.with_(block_table=table.clone().fill_(call.kv.shape[0]))),
        ("page id -1", call.with_(block_table=table.clone().fill_(-1))),
    ):  # fmt: skip
        error = raising(lambda c=changed: trial.subject.run(c, check_values=True))  # type: ignore[misc]
        if not isinstance(error, InvalidRequestError):
            raise Wrong("C1.15", f"{label}: got {error!r}, expected InvalidRequestError", SWALLOWS)

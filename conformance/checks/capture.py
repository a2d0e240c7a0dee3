"""C6.1 and C1.4: no host synchronisation, CUDA graphs, streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from flashmla_hub import NotSupportedError
from flashmla_hub.conformance.memory import Call, NotReached
from flashmla_hub.conformance.oracle_torch import Oracle
from flashmla_hub.conformance.subject import Got
from flashmla_hub.conformance.trial import Trial, Wrong

HOST_READ = "reads device values on the host"
STALE_REPLAY = "stale metadata"
# tolist of a CPU tensor reads its memory, and the torch backend uses it there alone.
READS = ("item", "__bool__", "__int__", "__index__", "__float__", "is_nonzero", "nonzero",
         "equal", "masked_select", "unique", "_unique2", "unique_consecutive")  # fmt: skip


class _Watch(TorchFunctionMode):
    """Notes the operations that need a tensor's values on the host.

    A mode of torch's functions: one of its dispatcher would be handed the hub's own op, and would
    not see what runs inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        name = getattr(func, "__name__", "")
        if name in READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def host_reads(trial: Trial) -> None:
    """What a dispatch mode sees of a call: on CPU the only witness, and not a complete one."""
    trial.require_promise("cuda_graph")
    call = trial.call
    meta = trial.metadata(call)
    trial.judge(call, trial.run(call, **meta))  # binding may read what it likes
    watch = _Watch()
    with watch:
        trial.subject.run(call, **meta)
    if watch.seen:
        raise Wrong("C1.4", f"{watch.seen[0]} in a call", HOST_READ)


@contextmanager
def _streams(trial: Trial) -> Iterator[Any]:
    if trial.subject.info.type != "cuda":
        raise NotReached(f"device type {trial.subject.info.type} has no CUDA streams")
    yield torch.cuda


def graph(trial: Trial) -> None:
    """Captured under global capture mode, replayed with everything changed in place."""
    with _streams(trial) as cuda:
        trial.require_promise("cuda_graph")
        call = trial.call
        meta = trial.metadata(call)
        if trial.case.variant == "first_seen":
            _first_seen(trial, call, meta)
            return
        trial.judge(call, trial.run(call, **meta))
        recorded = cuda.CUDAGraph()
        with cuda.graph(recorded, capture_error_mode="global"):
            got = trial.subject.run(call, **meta)
        assert call.cache_seqlens is not None and call.block_table is not None
        full, table, q = (t.clone() for t in (call.cache_seqlens, call.block_table, call.q))
        empty = full.clone()
        empty[1:] = 0
        side = cuda.Stream()
        for lengths, pages, queries in (
            (full, table, q), (full // 2, table, -q), (empty, table, q),
            (full.flip(0), table.flip(0), q), (full, table, q),
        ):  # fmt: skip
            call.cache_seqlens.copy_(lengths)
            call.block_table.copy_(pages)
            call.q.copy_(queries)
            cuda.synchronize()
            with cuda.stream(side):  # an eager call of the same shape beside the replay
                beside = trial.subject.run(call, **trial.metadata(call))
            recorded.replay()
            cuda.synchronize()
            want = Oracle(call).all()
            trial.judge(call, got, want, clause="C6.1")
            trial.judge(call, beside, want, clause="C6.1")


def _first_seen(trial: Trial, call: Call, meta: dict[str, Any]) -> None:
    """A key first seen under capture is refused, and the capture stays valid."""
    recorded = torch.cuda.CUDAGraph()
    error: BaseException | None = None
    mark = torch.zeros(1, device=call.device)
    with torch.cuda.graph(recorded, capture_error_mode="global"):
        try:
            trial.subject.run(call, **meta)
        except NotSupportedError as refused:
            error = refused
        mark += 1
    if error is None:
        raise Wrong("C6.1", "a kernel key first seen during capture was not refused")
    recorded.replay()
    torch.cuda.synchronize()
    if float(mark) != 1:
        raise Wrong("C6.1", "the capture was not valid after the refusal")
    trial.judge(call, trial.run(call))


def two_streams(trial: Trial) -> None:
    """Two threads, each on its own stream, give what each gives alone."""
    with _streams(trial) as cuda:
        trial.require()
        calls = (trial.call, trial.call.with_(q=-trial.call.q))
        alone = [trial.run(call) for call in calls]
        for call, got in zip(calls, alone, strict=True):
            trial.judge(call, got)
        results: list[list[Got]] = [[], []]
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                with cuda.stream(cuda.Stream()):
                    for _ in range(20):
                        got = trial.subject.run(calls[number])
                        results[number].append(got)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cuda.synchronize()
        if errors:
            raise Wrong("C6.1", f"raised {errors[0]!r} on a second stream")
        for number, gots in enumerate(results):
            for got in gots:
                trial.same_bits(alone[number], got, "C6.1", "streams disturb each other",
                                f"stream {number}")  # fmt: skip

"""Cases in subprocesses: one that exits, hangs or crashes costs that case alone.

A worker takes a batch of cases and writes one line of JSON for each into a pipe of its own, so
that nothing a port prints can be mistaken for a result. When it ends early, or is silent past
the limit, the case it was at is to blame, and another worker goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flashmla_hub.conformance.model import (
    Case,
    CaseResult,
    Outcome,
    from_json,
    to_json,
)

BATCH = 40  # cases a worker, so that one port's growth cannot build up over the whole run
START = 120.0  # seconds a worker may take to import everything

EXITS = "ends the process"
HANGS = "hangs"
CRASHES = "crashes the process"


def judge_all(
    target: str, call: bool, device: str, cases: Sequence[Case], limit: float,
    observe: Callable[[int, int, CaseResult], None] | None = None,
) -> list[CaseResult]:  # fmt: skip
    """Judge ``cases`` in order. ``limit``: seconds for each."""
    results: list[CaseResult] = []
    while len(results) < len(cases):
        batch = cases[len(results) : len(results) + BATCH]
        for result in _batch(target, call, device, batch, limit):
            results.append(result)
            if observe is not None:
                observe(len(results), len(cases), result)
    return results


def _batch(
    target: str, call: bool, device: str, cases: Sequence[Case], limit: float
) -> Iterator[CaseResult]:
    """Results, as they come: as many as one worker got through, the fatal one included."""
    read, write = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "flashmla_hub.conformance.worker", str(write)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(write,), text=True,
        start_new_session=True,
    )  # fmt: skip
    os.close(write)
    assert worker.stdin is not None
    job = {"target": target, "call": call, "device": device, "cases": [to_json(c) for c in cases]}
    try:
        worker.stdin.write(json.dumps(job))
        worker.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; the loop below says how
    try:
        with os.fdopen(read, "rb", buffering=0) as pipe:
            yield from _listen(pipe, worker, cases, limit)
    except BaseException:  # Ctrl-C: the worker leads a session of its own and did not get it
        _kill(worker)
        raise


def _listen(
    pipe: Any, worker: subprocess.Popen[str], cases: Sequence[Case], limit: float
) -> Iterator[CaseResult]:
    done = 0
    pending, begun, patience = b"", time.monotonic(), START
    while done < len(cases):
        left = begun + patience - time.monotonic()
        ready = select.select([pipe], [], [], max(left, 0))[0] if left > 0 else []
        case = cases[done]
        if not ready:
            _kill(worker)
            yield _fatal(case, Outcome.TIMEOUT, HANGS, patience,
                         f"no answer within {patience:g} s")  # fmt: skip
            return
        chunk = pipe.read(1 << 16)
        if not chunk:
            yield _ended(case, worker, time.monotonic() - begun)
            return
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line != b"ready":
                done += 1
                yield from_json(CaseResult, json.loads(line))
            begun, patience = time.monotonic(), limit
    worker.wait()


def _kill(worker: subprocess.Popen[str]) -> None:
    """End the worker and what it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):  # it has ended and was waited for
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _ended(case: Case, worker: subprocess.Popen[str], duration: float) -> CaseResult:
    code = worker.wait()
    if code < 0:
        name = signal.Signals(-code).name
        return _fatal(case, Outcome.CRASHED, CRASHES, duration, f"the process died of {name}")
    return _fatal(case, Outcome.CRASHED, EXITS, duration, f"the process exited with code {code}")


def _fatal(
    case: Case, outcome: Outcome, diagnosis: str, duration: float, reason: str
) -> CaseResult:
    return CaseResult(
        id=case.id, clauses=case.clauses, outcome=outcome, clause="C5.3", diagnosis=diagnosis,
        reason=reason, duration=duration,
    )  # fmt: skip

"""A whole run: cases in order, known failures, levels."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flashmla_hub import DeviceInfo, NoBackendError, config
from flashmla_hub.conformance import (
    CONTRACT_VERSION,
    GENERATOR_VERSION,
    KIT_VERSION,
    isolate,
    known,
    levels,
)
from flashmla_hub.conformance.cases import cases_of
from flashmla_hub.conformance.challenge import seed_of
from flashmla_hub.conformance.judge import judge
from flashmla_hub.conformance.model import (
    Case,
    CaseResult,
    Outcome,
    RunMeta,
    RunResult,
    to_json,
)
from flashmla_hub.conformance.subject import BackendSubject, FunctionSubject, Subject

Observer = Callable[[int, int, CaseResult], None]


@dataclass(frozen=True)
class Options:
    """How to run.

    ``select``: words, all of which a case's id or clauses must contain ('' for all). ``seed``:
    other inputs than the frozen ones, for hunting; such a run reaches no level. ``challenge``: a
    nonce of whoever asks; all inputs and sample positions are drawn from it, and levels are
    reached. ``isolate``: batches of cases in subprocesses, ``limit`` seconds a case at most.
    """

    level: str = "L1"
    device: str = "cpu"
    select: str = ""
    seed: int = 0
    challenge: str = ""
    isolate: bool = False
    limit: float = 60.0
    known_failures: Mapping[str, str] = field(default_factory=dict)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run. ``result`` has the ``done`` cases, the others as not reached."""

    def __init__(self, result: RunResult, done: int) -> None:
        self.result, self.done = result, done
        super().__init__(f"{done} of {len(result.cases)} cases judged")


def run(
    target: str, options: Options, *, call: bool = False, observe: Observer | None = None,
    cases: Sequence[Case] | None = None,
) -> RunResult:  # fmt: skip
    """Judge a backend by name (or with ``call`` a ``module:function``).

    Args:
        target: the backend's name, or module:function.
        options: see :class:`Options`.
        observe: told (number done, number of all, result) after each case.
        cases: instead of the level's own.

    Raises:
        NoBackendError: the backend does not run on this device or machine.
        Interrupted: by Ctrl-C, with what was judged until then.
    """
    subject = subject_of(target, options.device, call)
    if isinstance(subject, BackendSubject) and subject.missing():
        reasons = "; ".join(subject.missing())
        raise NoBackendError(f"backend {target!r} cannot be judged on {options.device}: {reasons}")
    asked = selected(cases_of(options.level, subject.claims()) if cases is None else cases, options)
    started = _now()
    results: list[CaseResult] = []

    def record(done: int, total: int, result: CaseResult) -> None:
        results.append(result)
        if observe is not None:
            observe(done, total, result)

    stopped = None
    try:
        if options.isolate:
            isolate.judge_all(target, call, options.device, asked, options.limit, record)
        else:
            for number, case in enumerate(asked, 1):
                record(number, len(asked), judge(subject, case))
    except KeyboardInterrupt:
        stopped = len(results)
        results += [
            CaseResult(id=case.id, clauses=case.clauses, outcome=Outcome.NOT_REACHED,
                       reason="interrupted before it was run")
            for case in asked[stopped:]
        ]  # fmt: skip
    results = known.apply(results, options.known_failures)
    partial = bool(options.select) or stopped is not None
    stale = known.stale(results, options.known_failures, partial)
    meta = RunMeta(
        contract_version=CONTRACT_VERSION, kit_version=KIT_VERSION,
        generator_version=GENERATOR_VERSION, backend=subject.name,
        backend_version=subject.version, level=options.level, selected=options.select,
        seed=options.seed, challenge=options.challenge, isolated=options.isolate,
        device=device_facts(subject.info),
        claims=subject.claims(), files=subject.files(), argv=tuple(sys.argv), started=started,
        ended=_now(), known_failures=dict(options.known_failures),
        stale_known_failures=tuple(stale),
    )  # fmt: skip
    result = levels.finish(meta, asked, results)
    if stopped is not None:
        raise Interrupted(result, stopped)
    return result


def subject_of(target: str, device: str, call: bool) -> Subject:
    return FunctionSubject(target, device) if call else BackendSubject(target, device)


def selected(cases: Sequence[Case], options: Options) -> tuple[Case, ...]:
    """The cases that -k leaves, with the inputs that the seed or the challenge draws."""
    words = options.select.split()
    kept = [c for c in cases if all(w in c.id or w in c.clauses or w == c.check for w in words)]
    seed = seed_of(options.seed, options.challenge)
    return tuple(replace(c, seed=seed) if seed else c for c in kept)


def device_facts(info: DeviceInfo) -> dict[str, Any]:
    """The device as the evidence names it. Under ``simulate_device`` or a device override the
    vendor and arch are what somebody said, not what was found: ``simulated``, whatever they are.
    """
    told = config.scope().simulated is not None or config.current().device is not None
    return {**to_json(info), "simulated": info.simulated or told}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

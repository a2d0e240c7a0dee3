"""One case, one verdict."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace

from flashmla_hub.conformance import narrow
from flashmla_hub.conformance.checks import CHECKS
from flashmla_hub.conformance.isolate import EXITS
from flashmla_hub.conformance.memory import NotReached
from flashmla_hub.conformance.model import Case, CaseResult, Outcome
from flashmla_hub.conformance.stdout import StdoutWatch
from flashmla_hub.conformance.subject import Subject
from flashmla_hub.conformance.trial import RAISES, REFUSES_CLAIMED, NotClaimed, Trial, Wrong

PRINTS = "prints on stdout"
# clauses whose cases go to an end of an axis
WHOLE_AXIS = frozenset(("C5.2a", "C1.1a", "C1.10", "C1.14", "C1.15", "C1.16", "C3.0a", "C4.1a",
                        "C4.1b"))  # fmt: skip


NARROWED = 24  # failures of one subject that are narrowed down: the others are like them


def judge(subject: Subject, case: Case) -> CaseResult:
    """Put ``case`` to ``subject``. Never raises for what the subject does.

    A failure of a case that is large, or unusual, on any axis is narrowed down: its diagnosis
    names the axes to blame, where there are.
    """
    result = _judge(subject, case)
    if not result.outcome.bad or not result.clause or not set(case.clauses) & WHOLE_AXIS:
        return result
    subject.narrowed += 1
    if subject.narrowed > NARROWED:
        return result
    found = narrow.blame(case, lambda smaller: _fails(subject, smaller))
    if not found:
        return result
    if result.diagnosis in (RAISES, REFUSES_CLAIMED):
        found = f"{result.diagnosis}: {found}"
    elif result.diagnosis:
        return replace(result, diagnosis=found, reason=f"{result.diagnosis}; {result.reason}")
    return replace(result, diagnosis=found)


def _fails(subject: Subject, case: Case) -> bool | None:
    """Whether one call is wrong; None where it cannot be put. Without a diagnosis: half the work
    of a case, and narrowing puts many."""
    trial = Trial(subject, case)
    if not trial.claim.accepted:
        return None
    try:
        with StdoutWatch():
            got = trial.run(trial.call, **trial.metadata(trial.call))
            want = trial.want
            return not trial.compared(got, want).ok
    except Wrong:
        return True
    except (NotClaimed, NotReached, MemoryError):
        return None
    except (Exception, SystemExit):  # a case that narrowing cannot make
        return None


def _judge(subject: Subject, case: Case) -> CaseResult:
    started = time.perf_counter()
    trial = Trial(subject, case)
    notes = trial.notes
    wrong: Wrong | None = None
    watch = StdoutWatch()
    try:
        with watch:
            CHECKS[case.check](trial)
    except Wrong as error:
        wrong = error
    except NotClaimed as error:
        notes.outcome, notes.reason = Outcome.NOT_CLAIMED, str(error)
    except NotReached as error:
        notes.outcome, notes.reason = Outcome.NOT_REACHED, str(error)
    except MemoryError as error:
        notes.outcome, notes.reason = Outcome.NOT_REACHED, f"out of memory: {error}"
    except SystemExit as error:
        wrong = Wrong("C5.3", f"called exit({error.code!r})", EXITS, outcome=Outcome.CRASHED)
    except Exception as error:  # the kit must name its own faults, and go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = Wrong("", f"the kit failed: {type(error).__name__}: {error} "
                      f"({where.name}, line {where.lineno})", outcome=Outcome.ERROR)  # fmt: skip
    if wrong is None and watch.text and "prints" not in subject.hazards():
        wrong = Wrong("C5.3", f"wrote to stdout: {watch.text.strip()[:80]!r}", PRINTS)
    duration = time.perf_counter() - started
    if wrong is not None:
        return CaseResult(
            id=case.id, clauses=case.clauses, outcome=wrong.outcome, reason=wrong.reason,
            clause=wrong.clause, diagnosis=wrong.diagnosis, rewrites=_rewrites(trial),
            duration=duration, metrics=wrong.metrics or notes.metrics,
        )  # fmt: skip
    drawn = notes.outcome.counts and notes.metrics is not None
    return CaseResult(
        id=case.id, clauses=case.clauses, outcome=notes.outcome, reason=notes.reason,
        rewrites=_rewrites(trial) if notes.outcome is Outcome.PASSED else (),
        refused_by=notes.refused_by, duration=duration, metrics=notes.metrics,
        input_digest=trial.inputs.digest if drawn else "", samples=notes.samples if drawn else (),
    )  # fmt: skip


def _rewrites(trial: Trial) -> tuple[str, ...]:
    """Those of the case's claim, if it came to be asked."""
    claim = trial.__dict__.get("claim")
    return claim.rewrites if claim is not None else ()

"""One case, one verdict."""

from __future__ import annotations

import time
import traceback

from flashmla_hub.conformance.checks import CHECKS
from flashmla_hub.conformance.isolate import EXITS
from flashmla_hub.conformance.memory import NotReached
from flashmla_hub.conformance.model import Case, CaseResult, Outcome
from flashmla_hub.conformance.stdout import StdoutWatch
from flashmla_hub.conformance.subject import Subject
from flashmla_hub.conformance.trial import NotClaimed, Trial, Wrong

PRINTS = "prints on stdout"


def judge(subject: Subject, case: Case) -> CaseResult:
    """Put ``case`` to ``subject``. Never raises for what the subject does."""
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

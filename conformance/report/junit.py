"""junit.xml, for CI systems: one suite a level, one test case a case."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from flashmla_hub.conformance.model import LEVELS, CaseResult, Outcome, RunResult


def junit_xml(run: RunResult) -> str:
    """The run as JUnit XML: failed, error (raised, timed out, crashed) and skipped apart."""
    levels = {case.id: case.level for case in run.cases}
    root = ET.Element("testsuites", name=_text(f"flashmla_hub conformance: {run.meta.backend}"))
    for level in LEVELS:
        results = [r for r in run.results if levels[r.id] == level]
        if not results:
            continue
        outcomes = [r.outcome for r in results]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=level,
            tests=str(len(results)),
            failures=str(outcomes.count(Outcome.FAILED)),
            errors=str(sum(o.bad and o is not Outcome.FAILED for o in outcomes)),
            skipped=str(sum(not o.bad and not o.counts for o in outcomes)),
            time=f"{sum(r.duration for r in results):.3f}",
            timestamp=run.meta.started,
        )
        for result in results:
            _case(suite, result)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, result: CaseResult) -> None:
    element = ET.SubElement(
        suite,
        "testcase",
        classname=result.clauses[0] if result.clauses else "",
        name=result.id,
        time=f"{result.duration:.3f}",
    )
    if result.outcome.counts:
        return
    kind = "skipped"
    if result.outcome.bad:
        kind = "failure" if result.outcome is Outcome.FAILED else "error"
    message = " | ".join(
        part for part in (result.outcome.value, result.clause, result.diagnosis) if part
    )
    child = ET.SubElement(element, kind, message=_text(message))
    child.text = _text(result.reason)


def _text(text: str) -> str:
    """What XML 1.0 cannot hold, and what a terminal or a reader could be misled by, as escapes."""
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)

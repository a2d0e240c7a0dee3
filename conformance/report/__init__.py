"""What a run leaves behind: evidence.json, report.html, badge.svg and junit.xml in one folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flashmla_hub.conformance.model import RunResult
from flashmla_hub.conformance.report.badge import badge_svg
from flashmla_hub.conformance.report.evidence import build_statement, write_evidence
from flashmla_hub.conformance.report.grouping import short_badge
from flashmla_hub.conformance.report.junit import junit_xml


def write_report(run: RunResult, directory: str | Path) -> tuple[Path, ...]:
    """Writes the files of ``run`` into ``directory`` (made if missing); returns their paths.

    report.html needs jinja2 and is left out where that is missing
    (``pip install 'flashmla-hub[report]'``). Raises OSError where writing fails.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    statement = build_statement(run)
    write_evidence(statement, folder / "evidence.json")
    badge = badge_svg("MLA contract", run.level, short_badge(run.badge) or "no level")
    texts = {"badge.svg": badge, "junit.xml": junit_xml(run)}
    if importlib.util.find_spec("jinja2") is not None:
        from flashmla_hub.conformance.report.html import render  # imports jinja2, an extra

        texts["report.html"] = render(run, statement)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return (folder / "evidence.json", *(folder / name for name in texts))

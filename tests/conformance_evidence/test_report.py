"""The four files of a report, from a made-up run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from synthetic import synthetic_run

from flashmla_hub.conformance.model import Outcome, canonical_json, from_json
from flashmla_hub.conformance.report import schema, write_report
from flashmla_hub.conformance.report.badge import badge_svg
from flashmla_hub.conformance.report.digests import evidence_digest, locate, portable_name
from flashmla_hub.conformance.report.evidence import build_statement
from flashmla_hub.conformance.report.grouping import advice, findings

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_evidence_is_canonical_and_fits_its_schema(tmp_path: Path) -> None:
    write_report(synthetic_run(), tmp_path)
    text = (tmp_path / "evidence.json").read_text()
    data = json.loads(text)
    assert canonical_json(data) != text, "one item a line"
    assert max(map(len, text.splitlines())) < 400
    assert text.count('"id": ') == text.count('\n     "id": ') == 120
    statement = from_json(schema.Statement, data)
    assert statement.predicate.flashmla_hub.digest == evidence_digest(data)
    assert statement.predicate.result == "FAILED"
    assert len(statement.predicate.failedTests) == 5


def test_published_schema_is_the_writers() -> None:
    published = json.loads((DOCS / "evidence-schema.json").read_text())
    assert published == schema.json_schema(), "run: python -m flashmla_hub.conformance.report"


def test_schema_document_names_every_field_of_the_body() -> None:
    text = (DOCS / "evidence-schema.md").read_text()
    missing = [f for f in schema.Evidence.__dataclass_fields__ if f"`{f}" not in text]
    assert not missing


def test_every_field_is_marked_or_explained() -> None:
    fields = set(schema.Evidence.__dataclass_fields__) - {"schema_version", "results", "fields"}
    marked = {name.split("[")[0] for name in schema.RECOMPUTED + schema.ASSERTED}
    assert fields - marked == {"stale_known_failures"}


def test_files_are_named_below_their_import_root(tmp_path: Path) -> None:
    name = portable_name(Path(schema.__file__))
    assert name == "flashmla_hub/conformance/report/schema.py"
    assert locate(name) == Path(schema.__file__)
    assert portable_name(tmp_path / "kernel.cubin") == "kernel.cubin"
    assert locate("kernel.cubin") is None


def test_no_path_of_this_machine_in_the_evidence() -> None:
    text = canonical_json(build_statement(synthetic_run()))
    assert str(Path(__file__).resolve().parent) not in text


def test_junit_counts_what_happened(tmp_path: Path) -> None:
    run = synthetic_run()
    write_report(run, tmp_path)
    suites = ET.parse(tmp_path / "junit.xml").getroot()
    assert sum(int(s.attrib["tests"]) for s in suites) == len(run.cases)
    assert sum(int(s.attrib["failures"]) for s in suites) == 4
    assert sum(int(s.attrib["errors"]) for s in suites) == 1
    failure = suites.find(".//failure")
    assert failure is not None and "LSE in base 2" in failure.attrib["message"]


def test_badge_is_an_image_that_says_level_and_version(tmp_path: Path) -> None:
    write_report(synthetic_run(), tmp_path)
    text = "".join(ET.parse(tmp_path / "badge.svg").getroot().itertext())
    assert "L1 v1 cpu" in text
    assert "+fp16" not in text, "the groups are on the page"
    ET.fromstring(badge_svg("<&>", "", "no level"))


def test_a_badge_holds_no_attribute_of_a_ports_choice() -> None:
    text = 'cuda" onload="alert(1)" x="\u202e\x1b'
    root = ET.fromstring(badge_svg("<&>", "L1", text))
    assert set(root.attrib) == {"width", "height", "role", "aria-label"}
    assert badge_svg("<&>", "L1", text).isascii()


HOSTILE = "\x1b[2J\u202e\u0430<b>\"'&\x00"


def test_what_a_port_may_choose_is_escaped_everywhere(tmp_path: Path) -> None:
    run = synthetic_run()
    device = {**run.meta.device, "name": HOSTILE, "rule": HOSTILE}
    meta = replace(run.meta, backend=HOSTILE, backend_version=HOSTILE, device=device)
    bad = replace(run.results[0], reason=HOSTILE, diagnosis=HOSTILE, outcome=Outcome.FAILED)
    write_report(replace(run, meta=meta, results=(bad, *run.results[1:])), tmp_path)
    ET.parse(tmp_path / "junit.xml")
    ET.parse(tmp_path / "badge.svg")
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not set(text) & set("\x1b\u202e\x00"), path.name
        assert '<b>"' not in text or path.suffix == ".json", path.name


def test_failures_of_one_cause_are_one_finding() -> None:
    found = findings(synthetic_run().results)
    assert [(f.title, len(f.others)) for f in found] == [
        ("LSE in base 2", 3),
        ("ended the process", 0),
    ]
    assert advice(found) == "4 of 5 failures are one: LSE in base 2. Start there."


def test_page_is_self_contained(tmp_path: Path) -> None:
    write_report(synthetic_run(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(""", page)
    for word in ("L1 v1 cpu +fp16", "LSE in base 2", "lse[0, 3, 0]", 'data-clause="C1.10"'):
        assert word in page


def test_markup_in_a_reason_stays_text(tmp_path: Path) -> None:
    run = synthetic_run()
    bad = replace(run.results[0], reason="<script>alert(1)</script>")
    write_report(replace(run, results=(bad, *run.results[1:])), tmp_path)
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1200, 375])
def test_page_in_a_browser(tmp_path: Path, width: int) -> None:
    """Scripts run, the filter of the address bar works, and nothing is wider than the window."""
    write_report(synthetic_run(), tmp_path)
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"""<iframe id="f" src="report.html#C1.8" style="width:{width}px;height:900px"></iframe>
        <pre id="o"></pre><script>document.getElementById("f").onload = (e) => {{
        const d = e.target.contentDocument;
        document.getElementById("o").textContent = [
          d.documentElement.scrollWidth, d.getElementById("shown").value,
          [...d.querySelectorAll("tr[data-clauses]")].filter((r) => !r.hidden).length,
          d.querySelectorAll(".plot circle").length].join("|"); }};</script>"""
    )
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    process = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000",
         "--window-size=1400,1000", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    match = re.search(r'<pre id="o">(\d+)\|([^|]*)\|(\d+)\|(\d+)</pre>', process.stdout)
    assert match, process.stdout[-500:] + process.stderr[-500:]
    assert int(match[1]) <= width
    assert match[2] == "12 of 120"
    assert match[3] == "12"
    assert int(match[4]) > 80

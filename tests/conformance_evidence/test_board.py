"""The board: every file of a folder, its verdict and failures; nothing of a file is markup."""

from __future__ import annotations

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import flashmla_hub
from flashmla_hub import cli
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.report import board
from flashmla_hub.conformance.report.digests import evidence_digest

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, honest: dict[str, Any], failing: dict[str, Any]) -> Path:
    (tmp_path / "good.json").write_text(canonical_json(honest))
    (tmp_path / "failing.json").write_text(canonical_json(failing))
    (tmp_path / "junk.json").write_text("[1]")
    honest["predicate"]["flashmla_hub"]["device"]["name"] = "</td>|\x1b\u202e[x](y)"
    honest["predicate"]["flashmla_hub"]["digest"] = evidence_digest(honest)
    (tmp_path / "hostile.json").write_text(canonical_json(honest))
    return tmp_path


def test_a_row_for_every_file(folder: Path) -> None:
    found = {entry.file: entry for entry in board.entries(folder)}
    assert found["good.json"].state == "verified"
    assert found["failing.json"].state == "verified"
    assert found["junk.json"].state == "refused"
    assert found["hostile.json"].why.startswith("device: device.type")
    text = board.markdown(list(found.values()))
    assert re.search(r"\| honest 1 \| x86_64 CPU \(cpu x86_64\) \| \d \| L0 \|", text)
    assert "NOT VERIFIED: schema: file: no evidence of this kit" in text
    assert "| C1.8 | LSE in base 2 | 5 | smoke/one-call: lse: " in text


def test_nothing_of_a_file_is_markup(folder: Path) -> None:
    found = board.entries(folder)
    for text in (board.markdown(found), board.page(found, "")):
        assert text.isascii()
        assert "\x1b" not in text
        assert "</td>|" not in text
    rows = [line for line in board.markdown(found).splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9, 5}
    body = board.page(found, "").partition("<body>")[2].partition("</body>")[0]
    ET.fromstring(f"<body>{body}</body>")


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["board", str(folder)]) == 1, "two files do not hold"
    assert "## What failed" in capsys.readouterr().out
    for name in ("junk.json", "hostile.json"):
        (folder / name).unlink()
    out = tmp_path / "out"
    assert cli.main(["board", str(folder), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"board.md", "board.html"}
    assert cli.main(["board", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["board", str(folder), "--share", "2"]) == 2


def test_what_a_table_of_backends_needs(folder: Path) -> None:
    (folder / "junk.json").unlink()
    (folder / "hostile.json").unlink()
    found = board.verified_on(folder)
    assert re.fullmatch(r"x86_64 CPU: L0 v\d cpu, \d{4}-\d\d-\d\d, good.json", found["honest"][0])
    assert "no level, 5 cases failed" in found["mutant_lse_base2"][0]


RESULTS = ROOT / "conformance" / "results"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs a checkout")
def test_the_committed_board_is_of_the_committed_evidence() -> None:
    """Whether a file is stale depends on the day; that the rows are those of the files does not."""
    found = board.entries(RESULTS, share=0.01)
    assert [entry.why for entry in found if entry.state == "refused"] == []
    shown = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
    for row in board.rows(found):
        cells = " | ".join(board._md(cell) for cell in row[:-1])
        assert f"| {cells} | " in shown, "run: flashmla-hub board conformance/results --out docs"
    assert shown.count("\n| ") - 1 <= len(found) + sum(len(e.failures) + 2 for e in found) + 1


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs a checkout")
def test_new_evidence_takes_the_place_of_old(tmp_path: Path, honest: dict[str, Any]) -> None:
    loader = SourceFileLoader("judge", str(ROOT / "tools" / "judge"))
    spec = spec_from_loader("judge", loader)
    assert spec is not None
    judge = module_from_spec(spec)
    loader.exec_module(judge)
    results, evidence = tmp_path / "results", tmp_path / "evidence.json"
    results.mkdir()
    evidence.write_text(canonical_json(honest))
    for name in ("honest-cpu-L3.json", "honest-h200-L3.json"):
        (results / name).write_text("{}")
    assert judge.keep(evidence, results).name == "honest-cpu-L0.json"
    assert {p.name for p in results.iterdir()} == {"honest-cpu-L0.json", "honest-h200-L3.json"}
    assert judge.slug({"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "vendor": "x"}) == "h100"
    assert judge.slug({"type": "npu", "name": "Ascend", "vendor": "huawei"}) == "huawei"

"""The evidence committed in conformance/results/ verifies (a random share of it: all in full)."""

from __future__ import annotations

from pathlib import Path

import pytest

import flashmla_hub
from flashmla_hub import cli

RESULTS = Path(flashmla_hub.__file__).resolve().parents[1] / "conformance" / "results"
FILES = sorted(RESULTS.glob("*.json"))
if not FILES:
    pytest.skip("needs a checkout", allow_module_level=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_share_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(path), "--share", "0.05"]) == 0, capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_of_it_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(path)]) == 0, capsys.readouterr().out

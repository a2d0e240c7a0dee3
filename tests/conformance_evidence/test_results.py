"""The evidence committed in conformance/results/ verifies (a random share of it: all in full).

Files of an older contract version are read as that, and not recomputed."""

from __future__ import annotations

from pathlib import Path

import pytest

import flashmla_hub
from flashmla_hub.conformance import CONTRACT_VERSION
from flashmla_hub.conformance.verify import summary, verify

RESULTS = Path(flashmla_hub.__file__).resolve().parents[1] / "conformance" / "results"
FILES = sorted(RESULTS.glob("*.json"))
if not FILES:
    pytest.skip("needs a checkout", allow_module_level=True)


def check(path: Path, share: float) -> None:
    result = verify(path.read_text(), share)
    assert result.findings == [], summary(result)
    assert (result.state == "older") == (result.contract_version < CONTRACT_VERSION)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_share_verifies(path: Path) -> None:
    check(path, 0.05)


@pytest.mark.full
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_of_it_verifies(path: Path) -> None:
    check(path, 1.0)

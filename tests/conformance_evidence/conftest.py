"""Evidence of two small real runs: an honest backend's, and one whose lse is in base 2."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from flashmla_hub.conformance.mutants.honest import HonestBackend
from flashmla_hub.conformance.mutants.roster import MUTANTS
from flashmla_hub.conformance.report.evidence import build_statement
from flashmla_hub.conformance.runner import Options, run
from flashmla_hub.testing import registered


def evidence_of(backend: Any, level: str = "L0") -> dict[str, Any]:
    with registered(backend):
        return build_statement(run(backend.name, Options(level=level)))


@pytest.fixture(scope="session")
def honest_evidence() -> dict[str, Any]:
    return evidence_of(HonestBackend())


@pytest.fixture(scope="session")
def failing_evidence() -> dict[str, Any]:
    return evidence_of(next(m for m in MUTANTS if m.name == "mutant_lse_base2").make())


@pytest.fixture
def honest(honest_evidence: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(honest_evidence)


@pytest.fixture
def failing(failing_evidence: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(failing_evidence)

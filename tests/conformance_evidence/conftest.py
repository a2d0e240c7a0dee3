"""Evidence of small real runs: an honest backend's, and one whose lse is in base 2."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from flashmla_hub.conformance.model import RunResult
from flashmla_hub.conformance.mutants.honest import HonestBackend
from flashmla_hub.conformance.mutants.roster import MUTANTS
from flashmla_hub.conformance.report.evidence import build_statement
from flashmla_hub.conformance.runner import Options, run
from flashmla_hub.testing import registered


def run_of(backend: Any, **options: Any) -> RunResult:
    with registered(backend):
        return run(backend.name, Options(**{"level": "L0", **options}))


@pytest.fixture(scope="session")
def honest_run() -> RunResult:
    """L1: values, refusals, metadata and properties."""
    return run_of(HonestBackend(), level="L1")


@pytest.fixture(scope="session")
def honest_smoke() -> RunResult:
    return run_of(HonestBackend())


@pytest.fixture(scope="session")
def honest_evidence(honest_smoke: RunResult) -> dict[str, Any]:
    return build_statement(honest_smoke)


@pytest.fixture(scope="session")
def challenged_evidence() -> dict[str, Any]:
    return build_statement(run_of(HonestBackend(), challenge="a word of mine"))


@pytest.fixture(scope="session")
def failing_evidence() -> dict[str, Any]:
    return build_statement(run_of(next(m for m in MUTANTS if m.name == "mutant_lse_base2").make()))


@pytest.fixture
def honest(honest_evidence: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(honest_evidence)


@pytest.fixture
def challenged(challenged_evidence: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(challenged_evidence)


@pytest.fixture
def failing(failing_evidence: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(failing_evidence)

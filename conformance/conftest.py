"""``pytest --pyargs flashmla_hub.conformance --backend NAME``: the kit as tests, for a port's
author: one test a case, with pytest's own -k, -x and --lf. Options: options.py."""

from __future__ import annotations

import pytest

from flashmla_hub.conformance import known
from flashmla_hub.conformance.cases import cases_of
from flashmla_hub.conformance.runner import subject_of
from flashmla_hub.conformance.subject import Subject


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    backend, call = pytestconfig.getoption("backend"), pytestconfig.getoption("call")
    if (backend is None) == (call is None):
        raise pytest.UsageError("give one of --backend NAME and --call module:function")
    return subject_of(backend or call, pytestconfig.getoption("device"), call is not None)


@pytest.fixture(scope="session")
def known_failures(pytestconfig: pytest.Config) -> dict[str, str]:
    path = pytestconfig.getoption("known_failures")
    return known.load(path) if path else {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = cases_of(metafunc.config.getoption("level"))
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])

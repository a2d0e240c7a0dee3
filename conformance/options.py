"""The options of the kit under pytest. From a checkout: ``-p flashmla_hub.conformance.options``;
an installed hub brings them by itself (``_flashmla_hub_pytest``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmla_hub.conformance.model import LEVELS


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("flashmla_hub conformance")
    group.addoption("--backend", help="name of the backend to judge")
    group.addoption("--call", help="module:function to judge without a plugin")
    group.addoption("--device", default="cpu", help="torch device (default: cpu)")
    group.addoption("--level", default="L1", choices=LEVELS, help="up to this level (L1)")
    group.addoption("--known-failures", type=Path, help="a file of 'case id | reason' lines")


def pytest_addoption(parser: pytest.Parser) -> None:
    add(parser)

"""examples/plugin, uninstalled: its plugin module serves what it declares."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import flashmla_hub
from flashmla_hub import plugins, testing
from flashmla_hub.conformance import runner

FOLDER = Path(__file__).parents[2] / "examples/plugin"


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "src"))
    yield importlib.import_module("flashmla_hub_acme.plugin")
    for name in [m for m in sys.modules if m.startswith("flashmla_hub_acme")]:
        del sys.modules[name]


def test_reaches_level_1_and_leaves_the_cpu_to_others(plugin):
    with testing.registered(plugin, "acme"):
        key = flashmla_hub.KernelKey(h_q=12)
        assert flashmla_hub.explain(key, device="acme:a1").selected == "acme"
        assert flashmla_hub.explain(key, device="cpu").selected != "acme"
        result = runner.run("acme", runner.Options(level="L1"))
    assert result.level == "L1", [f"{r.id}: {r.reason}" for r in result.results if r.outcome.bad]


def test_its_entry_point_is_the_hubs_group():
    text = (FOLDER / "pyproject.toml").read_text()
    assert f'[project.entry-points."{plugins.ENTRY_POINT_GROUP}"]' in text
    assert 'acme = "flashmla_hub_acme.plugin"' in text


def test_importing_it_imports_no_port(plugin):
    assert "flashmla_hub_acme.port" not in sys.modules

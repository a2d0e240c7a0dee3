"""Shared by all tests: no plugin of the machine, a cache directory of the test's own."""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch

from flashmla_hub import config

pytest_plugins = ["suite_times"]

# A shell starts background jobs with Ctrl-C ignored; the tests of Ctrl-C send one to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # small tensors: threads cost more than they bring


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory, monkeypatch):
    """Tests neither read nor write the user's cache, and see no setting of the user's shell."""
    cache = tmp_path_factory.mktemp("cache")
    settings = dataclasses.replace(config.from_environment({}), cache_dir=cache)
    monkeypatch.setattr(config, "_process_scope", config.Scope(settings))

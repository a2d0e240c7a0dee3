"""Tests on a card share the machine's cache of compiled kernels: building twenty of them again in
every run is minutes, and is tested where it is the subject."""

from __future__ import annotations

import dataclasses
import os

import pytest

from flashmla_hub import config


@pytest.fixture(autouse=True)
def _cache_of_the_machine(_own_settings, monkeypatch):
    cache = config.from_environment(os.environ).cache_dir
    settings = dataclasses.replace(config.current(), cache_dir=cache)
    monkeypatch.setattr(config, "_process_scope", config.Scope(settings))

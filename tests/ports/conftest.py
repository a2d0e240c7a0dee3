"""Fakes on ``sys.path`` and the adapters that may run on simulated devices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from flashmla_hub import foreign, testing
from tests.simulated_ports import backends, catalogue

FAKE_NAMES = (
    "flash_mla", "flash_mla_cuda", "flash_mla_musa", "flash_mla_corex", "mate", "ixformer",
    "aiter", "flag_gems",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Callable[..., None]]:
    """``install("metax", ...)`` puts those fakes on ``sys.path``; undone after the test."""
    for table in ("_loaded", "_importers", "_hidden"):
        monkeypatch.setattr(foreign, table, {})

    def put(*labels: str) -> None:
        for folder in reversed(catalogue.install_each(labels, tmp_path)):
            monkeypatch.syspath_prepend(folder)

    yield put
    for name in [m for m in sys.modules if m.partition(".")[0] in FAKE_NAMES]:
        del sys.modules[name]


@pytest.fixture
def simulated_ports() -> Iterator[None]:
    """The adapters under the names ``simulated_<name>``, able to run on simulated devices."""
    with testing.registered(backends, "simulated_ports"):
        yield
